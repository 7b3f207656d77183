"""The command line: one thin file per command, each imported only when it is called."""

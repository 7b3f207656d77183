"""Starting the ranks of a run and seeing them end: argv, environment, op builds, supervision."""

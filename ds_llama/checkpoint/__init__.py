"""Save a DeepSpeed engine through the commit protocol, and resume from what was committed."""

"""The report of a benchmark: everything in it is derived from the folder's raw rows."""

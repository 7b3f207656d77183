"""The benchmark harness: cases, cells in fresh processes, rows, and the report made of them."""

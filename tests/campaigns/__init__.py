"""Longer proofs than the suite has time for; each prints a table and exits with 1 on any loss."""

"""The training loop, the hooks around it, and what it measures."""

"""What a run will cost, in closed form. Nothing here imports torch."""

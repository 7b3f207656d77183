"""The reference loop, and the matrix of stages, offloads and precisions that is compared with it.

cells       which cells there are, what each needs; no torch
tiny        the run and the batches that all of them use
reference   the training loop written by hand
compare     one cell: the engine beside the reference
outcome     what a cell came to
sabotage    ways to break the engine's side on purpose
rank        all cells of one launch, on one rank
"""

"""What is committed and whether it is whole: manifest, fsync, rename, locks, retention.

Standard library only, so that listing a folder of checkpoints costs no torch.
"""

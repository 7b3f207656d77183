"""Small runs and batches that the cells share: those of the selftest."""

from ds_llama.selftest.tiny import MODEL, TOKENS, VOCAB, global_batch, make_run, split

__all__ = ["MODEL", "TOKENS", "VOCAB", "global_batch", "make_run", "split"]

"""The hand-written loop that cells compare with: the selftest's."""

from ds_llama.selftest.reference import Reference

__all__ = ["Reference"]

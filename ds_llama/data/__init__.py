"""From text to token streams: tokenizer, corpus sources, shards, packing, sampler, loader."""

from __future__ import annotations

from ds_llama.data.corpora import open_corpora, open_data
from ds_llama.data.shards import Shard, ShardWriter, check_vocabulary

__all__ = ["Shard", "ShardWriter", "check_vocabulary", "open_corpora", "open_data"]

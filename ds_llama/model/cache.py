"""Keys and values of the tokens seen so far, for generation.

Memory grows by doubling, or is taken at once when `max_length` is known. Inference only: it is
written in place, which autograd could not undo.

Legend: B batch, K key/value heads, T new tokens, S tokens held, d head dim.
"""

from __future__ import annotations

from torch import Tensor

from ds_llama.errors import ModelError


class Cache:
    """One (keys, values) pair per layer, all of the same length.

        cache = Cache(max_length=128)
        with torch.no_grad():
            logits = model(prompt, past_key_values=cache).logits
            logits = model(next_token, past_key_values=cache).logits

    `length` is the number of tokens that every layer holds.
    """

    def __init__(self, max_length: int | None = None) -> None:
        self.length = 0
        self.max_length = max_length
        self._layers: list[tuple[Tensor, Tensor]] = []

    def update(self, layer: int, k_BKTd: Tensor, v_BKTd: Tensor) -> tuple[Tensor, Tensor]:
        """Append new keys and values of one layer; returns all that the layer holds, (B, K, S, d).

        Layers come in order, 0 first; `advance` ends the step. Raises ModelError when gradients
        are wanted, when the cache is full, or when the batch size changes.
        """
        if k_BKTd.requires_grad or v_BKTd.requires_grad:
            raise ModelError(
                "a KV cache holds no gradients, and the model was called with them enabled",
                where="past_key_values",
                remedy="call the model under torch.no_grad(), or without past_key_values",
            )
        stop = self.length + k_BKTd.shape[2]
        if layer == len(self._layers):
            empty = k_BKTd[:, :, :0]
            self._layers.append((empty, empty))
        held = self._layers[layer]
        if held[0].shape[0] != k_BKTd.shape[0]:
            raise ModelError(
                f"the cache holds {held[0].shape[0]} sequences, the call has {k_BKTd.shape[0]}",
                where="past_key_values",
                remedy="start every batch with a Cache of its own",
            )
        if held[0].shape[2] < stop:
            held = self._grown(held, k_BKTd, stop)
            self._layers[layer] = held
        for memory, new in zip(held, (k_BKTd, v_BKTd), strict=True):
            memory[:, :, self.length : stop] = new
        return held[0][:, :, :stop], held[1][:, :, :stop]

    def advance(self, tokens: int) -> None:
        """Every layer has taken `tokens` more."""
        self.length += tokens

    @property
    def num_bytes(self) -> int:
        """Bytes that the keys and values take, the unused rest of each layer's memory included."""
        return sum(part.untyped_storage().nbytes() for pair in self._layers for part in pair)

    def _grown(self, held: tuple[Tensor, Tensor], k: Tensor, stop: int) -> tuple[Tensor, Tensor]:
        if self.max_length is not None and stop > self.max_length:
            raise ModelError(
                f"{stop} tokens do not fit a cache of {self.max_length}",
                where="past_key_values",
                remedy="make the Cache with a greater max_length, or with none",
            )
        room = self.max_length or max(stop, 2 * held[0].shape[2])
        grown = []
        for old in held:
            memory = k.new_empty(k.shape[0], k.shape[1], room, k.shape[3])
            memory[:, :, : old.shape[2]] = old
            grown.append(memory)
        return grown[0], grown[1]

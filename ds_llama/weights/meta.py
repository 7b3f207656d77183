"""Meta's release of a LLaMA, seen as Hugging Face's tensors.

    params.json           dim, n_layers, n_heads, … (params.py)
    consolidated.00.pth   one file a model-parallel rank, each with a part of every matrix:

    cut along the rows (0)      wq wk wv w1 w3 output
    cut along the columns (1)   wo w2
    by its shape                tok_embeddings: columns in LLaMA 1 and 2, rows since 3
    whole in every part         norms

Meta turns neighbours of a head, elements 2i and 2i + 1, Hugging Face its halves, i and i + d/2: the
rows of wq and wk are put in that order, head by head (`permute` in transformers'
models/llama/convert_llama_weights_to_hf.py, which transformers 5 no longer has).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import TracebackType

import torch

from ds_llama.config.model import LlamaConfig
from ds_llama.errors import CheckpointError
from ds_llama.weights import params
from ds_llama.weights.pickled import Reader
from ds_llama.weights.skeleton import TIED
from ds_llama.weights.tensorfile import PART_BYTES, Spec, equal

_COMPUTED = "rope.freqs"  # the end of a name: some releases have it in every block
_HEAD, _EMBEDDING = TIED
# Meta's name, Hugging Face's, and along which dimension the parts are joined.
_OUTSIDE = {
    "tok_embeddings": ("model.embed_tokens", None),
    "norm": ("model.norm", None),
    "output": ("lm_head", 0),
}
_BLOCK = {
    "attention.wq": ("self_attn.q_proj", 0),
    "attention.wk": ("self_attn.k_proj", 0),
    "attention.wv": ("self_attn.v_proj", 0),
    "attention.wo": ("self_attn.o_proj", 1),
    "feed_forward.w1": ("mlp.gate_proj", 0),
    "feed_forward.w2": ("mlp.down_proj", 1),
    "feed_forward.w3": ("mlp.up_proj", 0),
    "attention_norm": ("input_layernorm", None),
    "ffn_norm": ("post_attention_layernorm", None),
}
_IN_BLOCK = re.compile(r"layers\.(\d+)\.(.+)\.weight")


class MetaFolder:
    """The tensors of such a folder by Hugging Face's names. Use as a context manager.

    config: what params.json and the shapes say. Raises ConfigError for a params.json that lacks a
    number, CheckpointError for parts that are missing, damaged or of different models.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder
        self._params = params.read(folder)
        with ExitStack() as stack:
            self._readers = [stack.enter_context(Reader(file)) for file in _files(folder)]
            self._keys = {
                _translated(k): k for k in self._readers[0].specs if not k.endswith(_COMPUTED)
            }
            self._require_parts_of_one_model()
            tied = _HEAD in self._keys and self._head_is_the_embedding()
            if tied:
                del self._keys[_HEAD]
            self.config = self._network(tied)
            self._stack = stack.pop_all()

    def __enter__(self) -> MetaFolder:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()

    @property
    def names(self) -> list[str]:
        """Every tensor; one that a LLaMA does not have keeps the name that Meta gave it."""
        return list(self._keys)

    @property
    def tokenizer(self) -> Path | None:
        """Its file, in the folder or above it."""
        files = (self.path / "tokenizer.model", self.path.parent / "tokenizer.model")
        return next((file for file in files if file.is_file()), None)

    def spec(self, name: str) -> Spec:
        """Shape and dtype of a whole tensor."""
        part = self._readers[0].specs[self._keys[name]]
        shape, along = list(part.shape), self._along(name)
        if along is not None and along < len(shape):
            shape[along] *= len(self._readers)
        return Spec(part.dtype, tuple(shape))

    def parts(self, name: str) -> Iterator[torch.Tensor]:
        """All elements of a tensor in order, in one piece."""
        whole = self._joined(name)
        if name.endswith(".q_proj.weight"):
            whole = half_rotated(whole, self.config.num_attention_heads)
        elif name.endswith(".k_proj.weight"):
            whole = half_rotated(whole, self.config.num_key_value_heads)
        yield whole

    def _along(self, name: str) -> int | None:
        """The dimension that is divided among the parts; None for what every part has whole."""
        key = self._keys[name]
        inside = _IN_BLOCK.fullmatch(key)
        if inside:
            return _BLOCK.get(inside[2], ("", None))[1]
        if name == _EMBEDDING:
            width = self._readers[0].specs[key].shape[-1:]
            return 0 if width == (self._params["dim"],) else 1
        return _OUTSIDE.get(key.removesuffix(".weight"), ("", None))[1]

    def _joined(self, name: str) -> torch.Tensor:
        key, along, spec = self._keys[name], self._along(name), self.spec(name)
        if along is None or len(self._readers) == 1:
            return self._readers[0].read(key).view(spec.shape)
        whole = torch.empty(spec.shape, dtype=spec.dtype)
        for reader, part in zip(self._readers, whole.chunk(len(self._readers), along), strict=True):
            rows, columns = part.shape
            step = max(1, PART_BYTES // (columns * spec.dtype.itemsize))
            for first in range(0, rows, step):
                last = min(first + step, rows)
                part[first:last] = reader.read(key, first * columns, last * columns).view(
                    -1, columns
                )
        return whole

    def _require_parts_of_one_model(self) -> None:
        first, here, dim = self._readers[0], len(self._readers), self._params["dim"]
        for reader in self._readers[1:]:
            for key in self._keys.values():
                if reader.specs.get(key) != first.specs[key]:
                    raise _mixed(
                        f"{key} is {_said(reader, key)} in it, {_said(first, key)} in the first",
                        reader,
                    )
        rows = first.specs.get("layers.0.attention.wq.weight", Spec(torch.float32, (0,))).shape[0]
        if rows and rows * here != dim:
            raise CheckpointError(
                f"there are {here} parts, and {rows} of {dim} rows of wq in each make it "
                f"{dim / rows:g}",
                where=str(self.path),
                remedy=f"copy every consolidated.*.pth of the model, and its own {params.NAME}",
            )

    def _head_is_the_embedding(self) -> bool:
        """LLaMA 3.2 is tied, and its release says so by a second copy alone."""
        embedding, head = self._keys.get(_EMBEDDING, ""), self._keys[_HEAD]
        if self._readers[0].specs.get(embedding) != self._readers[0].specs[head]:
            return False
        return all(
            equal(partial(r.read, embedding), partial(r.read, head), r.specs[head])
            for r in self._readers
        )

    def _network(self, tied: bool) -> LlamaConfig:
        gate = "model.layers.0.mlp.gate_proj.weight"
        for name in (_EMBEDDING, gate):
            if name not in self._keys:
                raise _mixed(f"it has no tensor for {name}", self._readers[0])
        return params.network(
            self._params,
            vocab_size=self.spec(_EMBEDDING).shape[0],
            intermediate_size=self.spec(gate).shape[0],
            tied=tied,
            where=self.path,
        )


def half_rotated(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of a projection to `heads` heads, from neighbours that turn together to halves."""
    rows, columns = weight.shape
    pairs = weight.view(heads, rows // heads // 2, 2, columns)
    return pairs.transpose(1, 2).reshape(rows, columns)


def _translated(key: str) -> str:
    inside = _IN_BLOCK.fullmatch(key)
    if inside and inside[2] in _BLOCK:
        return f"model.layers.{inside[1]}.{_BLOCK[inside[2]][0]}.weight"
    outside = _OUTSIDE.get(key.removesuffix(".weight"))
    return f"{outside[0]}.weight" if outside else key


def _files(folder: Path) -> list[Path]:
    files = sorted(folder.glob("consolidated.*.pth"))
    expected = [folder / f"consolidated.{number:02d}.pth" for number in range(len(files) or 1)]
    lacking = next((file for file in expected if file not in files), None)
    if lacking:
        raise CheckpointError(
            f"{lacking.name} is missing",
            where=str(folder),
            remedy="copy every consolidated.*.pth of the model",
        )
    return files


def _mixed(what: str, reader: Reader) -> CheckpointError:
    return CheckpointError(
        f"{reader.path.name} is no part of this model: {what}",
        where=str(reader.path),
        remedy="give the folder of a LLaMA of text as Meta released it, all parts of one model",
    )


def _said(reader: Reader, key: str) -> str:
    spec = reader.specs.get(key)
    return f"{list(spec.shape)} {str(spec.dtype).removeprefix('torch.')}" if spec else "missing"

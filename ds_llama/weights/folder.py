"""A Hugging Face model folder: config.json, and tensors in one file or in shards with an index.

config.json  generation_config.json  tokenizer files
model.safetensors                                           one file, or
model-00001-of-00002.safetensors …  model.safetensors.index.json
pytorch_model.bin, or shards with pytorch_model.bin.index.json: on import, where there are no others
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

import torch

from ds_llama.config.model import LlamaConfig
from ds_llama.errors import CallError, CheckpointError, ModelError
from ds_llama.weights import pickled
from ds_llama.weights.tensorfile import FLOATS, PART_BYTES, Reader, Spec

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
GENERATION = "generation_config.json"
_PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json")
# Old conversions store these tables; a model computes them.
COMPUTED = re.compile(r".*\.rotary_emb\.inv_freq")
TOKENIZER_FILES = (
    "tokenizer.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
)


def read_config(folder: str | Path) -> LlamaConfig:
    """The network that a folder's config.json describes.

    Raises CallError when it is missing, ConfigErrors when it is no LLaMA.
    """
    return LlamaConfig.from_hf(Path(folder) / "config.json")


class ModelFolder:
    """The tensors of a model folder, whichever files they are in. Use as a context manager.

    folder: has model.safetensors, or an index and its shards. pickles: pytorch_model.bin is read
    too, as `pickled.Reader` does. Raises CallError when `folder` is none, CheckpointError when it
    has no tensors or a file of the index is missing or damaged.
    """

    def __init__(self, folder: str | Path, *, pickles: bool = False) -> None:
        self.path = Path(folder)
        if not self.path.is_dir():
            raise CallError(
                "there is no such folder of weights",
                where=str(folder),
                remedy="give a local folder with config.json and safetensors; download it first",
            )
        self._files = _files(self.path, pickles)
        self._readers: dict[str, Reader | pickled.Reader] = {}
        self._stack = ExitStack()

    def __enter__(self) -> ModelFolder:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()

    @property
    def config(self) -> LlamaConfig:
        """What its config.json says."""
        return read_config(self.path)

    @property
    def tokenizer(self) -> Path:
        """Where its tokenizer is, if it has one."""
        return self.path

    @property
    def names(self) -> list[str]:
        """Every tensor, in the order of the files."""
        return list(self._files)

    def spec(self, name: str) -> Spec:
        """Shape and dtype of a tensor."""
        return self._reader(name).specs[name]

    def read(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """Elements start … stop of a tensor, row major: 1-D, in the file's dtype."""
        return self._reader(name).read(name, start, stop)

    def parts(self, name: str) -> Iterator[torch.Tensor]:
        """All elements of a tensor in order, some MiB at a time."""
        spec = self.spec(name)
        step = PART_BYTES // spec.dtype.itemsize
        for start in range(0, spec.numel, step):
            yield self.read(name, start, min(start + step, spec.numel))

    def _reader(self, name: str) -> Reader | pickled.Reader:
        file = self._files[name]
        if file not in self._readers:
            self._readers[file] = self._stack.enter_context(_open(self.path / file))
        if name not in self._readers[file].specs:
            raise CheckpointError(
                f"{file} does not hold {name}, which the index says it does",
                where=str(self.path),
                remedy="copy or download the folder again",
            )
        return self._readers[file]


def require_floats(name: str, dtype: torch.dtype, where: Path) -> None:
    """Raise ModelError for a tensor of weights whose numbers are no weights."""
    if dtype not in FLOATS:
        raise ModelError(
            f"{name} is stored as {str(dtype).removeprefix('torch.')}: the weights are quantized",
            where=str(where),
            remedy="take the model in bf16, fp16 or fp32",
        )


def _open(file: Path) -> Reader | pickled.Reader:
    return Reader(file) if file.suffix == ".safetensors" else pickled.Reader(file)


def _files(folder: Path, pickles: bool) -> dict[str, str]:
    """Which file holds which tensor."""
    for single, index in [(SINGLE, INDEX), *([_PICKLED] if pickles else [])]:
        if (folder / index).is_file():
            return _indexed(folder / index)
        if (folder / single).is_file():
            with _open(folder / single) as reader:
                return dict.fromkeys(reader.specs, single)
    found = next(iter(sorted([*folder.glob("*.bin"), *folder.glob("*.pth")])), None)
    raise CheckpointError(
        f"the folder has neither {SINGLE} nor {INDEX}"
        + (f"; {found.name} is a pickle, which is not read here" if found else ""),
        where=str(folder),
        remedy=f"convert it first: ds-llama import {folder} OUT"
        if found and not pickles
        else "give a folder that save_pretrained, or ds-llama export, wrote",
    )


def _indexed(index: Path) -> dict[str, str]:
    try:
        found = json.loads(index.read_bytes())["weight_map"]
        weight_map = {str(name): str(file) for name, file in found.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{index.name} is damaged ({type(error).__name__}: {error})",
            where=str(index),
            remedy="copy or download the folder again",
        ) from error
    for file in sorted(set(weight_map.values())):
        inside = Path(file).name == file
        if not inside or not (index.parent / file).is_file():
            what = "missing" if inside else "outside the folder"
            raise CheckpointError(
                f"{index.name} names {file}, which is {what}",
                where=str(index),
                remedy="copy or download the folder again",
            )
    return weight_map

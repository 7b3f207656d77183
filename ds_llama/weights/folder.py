"""A Hugging Face model folder: config.json, and safetensors in one file or in shards with an index.

config.json  generation_config.json  tokenizer files
model.safetensors                                           one file, or
model-00001-of-00002.safetensors …  model.safetensors.index.json
"""

from __future__ import annotations

import json
import re
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

import torch

from ds_llama.config.model import LlamaConfig
from ds_llama.errors import CallError, CheckpointError
from ds_llama.weights.tensorfile import Reader, Spec

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
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

    folder: has model.safetensors, or an index and its shards. Raises CallError when `folder` is
    none, CheckpointError when it has no safetensors or a file of the index is missing or damaged.
    """

    def __init__(self, folder: str | Path) -> None:
        self.path = Path(folder)
        if not self.path.is_dir():
            raise CallError(
                "there is no such folder of weights",
                where=str(folder),
                remedy="give a local folder with config.json and safetensors; download it first",
            )
        self._files = _files(self.path)
        self._readers: dict[str, Reader] = {}
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
    def names(self) -> list[str]:
        """Every tensor, in the order of the files."""
        return list(self._files)

    def spec(self, name: str) -> Spec:
        """Shape and dtype of a tensor."""
        return self._reader(name).specs[name]

    def read(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """Elements start … stop of a tensor, row major: 1-D, in the file's dtype."""
        return self._reader(name).read(name, start, stop)

    def _reader(self, name: str) -> Reader:
        file = self._files[name]
        if file not in self._readers:
            self._readers[file] = self._stack.enter_context(Reader(self.path / file))
        if name not in self._readers[file].specs:
            raise CheckpointError(
                f"{file} does not hold {name}, which {INDEX} says it does",
                where=str(self.path / INDEX),
                remedy="copy or download the folder again",
            )
        return self._readers[file]


def _files(folder: Path) -> dict[str, str]:
    """Which file holds which tensor."""
    if (folder / INDEX).is_file():
        return _indexed(folder / INDEX)
    if (folder / SINGLE).is_file():
        with Reader(folder / SINGLE) as reader:
            return dict.fromkeys(reader.specs, SINGLE)
    pickled = next(iter(sorted([*folder.glob("*.bin"), *folder.glob("*.pth")])), None)
    raise CheckpointError(
        f"the folder has neither {SINGLE} nor {INDEX}"
        + (f"; {pickled.name} is a pickle, which is not read" if pickled else ""),
        where=str(folder),
        remedy="save the model as safetensors: model.save_pretrained(folder) in transformers"
        if pickled
        else "give a folder that save_pretrained, or ds-llama export, wrote",
    )


def _indexed(index: Path) -> dict[str, str]:
    try:
        found = json.loads(index.read_bytes())["weight_map"]
        weight_map = {str(name): str(file) for name, file in found.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{INDEX} is damaged ({type(error).__name__}: {error})",
            where=str(index),
            remedy="copy or download the folder again",
        ) from error
    for file in sorted(set(weight_map.values())):
        inside = Path(file).name == file
        if not inside or not (index.parent / file).is_file():
            raise CheckpointError(
                f"{INDEX} names {file}, which is {'missing' if inside else 'outside the folder'}",
                where=str(index),
                remedy="copy or download the folder again",
            )
    return weight_map

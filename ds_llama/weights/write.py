"""A Hugging Face folder in the making: files planned first, then written part by part of a tensor.

The finished folder is renamed to its name, so that a reader never sees a part of it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from ds_llama.config.model import LlamaConfig
from ds_llama.data.tokenizer import load_tokenizer
from ds_llama.errors import CheckpointError, DsLlamaError, ModelError
from ds_llama.weights.folder import GENERATION, INDEX, SINGLE, TOKENIZER_FILES
from ds_llama.weights.tensorfile import Spec, Writer

MAX_SHARD_BYTES = 4 << 30
_SHARD = re.compile(r"model(-\d+-of-\d+)?\.safetensors")


def write_folder(
    out: str | Path,
    config: LlamaConfig,
    specs: Mapping[str, Spec],
    parts_of: Callable[[str], Iterable[torch.Tensor]],
    *,
    tokenizer: Any = None,
    generation: str | Path | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> Path:
    """Write a Hugging Face folder from a stream of tensors, in one process.

    specs: every tensor's dtype and shape in the file, in the order in which they are written.
    parts_of: the elements of a tensor by its name, row major, in one part or several, of any dtype;
    a part is let go before the next is asked for. generation: the folder whose
    generation_config.json goes along if it has one, instead of what the config gives. Errors as for
    `export_model`.
    """
    folder = None
    try:
        folder = FolderWriter(Path(out), config, specs, tokenizer, max_shard_bytes, generation)
        for name in specs:
            folder.add(name, parts_of(name))
        folder.publish()
    except OSError as error:
        raise explained(error, out) from error
    finally:
        if folder is not None:
            folder.discard()
    return Path(out)


class FolderWriter:
    """A model folder in the making, beside the name that it will have.

    Raises ModelError for a tensor without elements, CheckpointError when something that is no
    export stands at `out`, OSError as the disk gives it.
    """

    def __init__(
        self,
        out: Path,
        config: LlamaConfig,
        specs: Mapping[str, Spec],
        tokenizer: Any,
        max_shard_bytes: int,
        generation: str | Path | None = None,
    ) -> None:
        # Through links, and "." has a name.
        self.out = out = Path(os.path.realpath(out))
        self.staged = out.with_name(f".{out.name}.staging")
        self._former = out.with_name(f".{out.name}.former")
        _require_elements(specs)
        if self._former.is_dir() and not out.exists():
            os.rename(self._former, out)  # a process was killed between the two of `publish`
        _check_target(out)
        self.specs = dict(specs)
        self.files = plan(self.specs, max_shard_bytes)
        shutil.rmtree(self.staged, ignore_errors=True)
        self.staged.mkdir(parents=True)
        self._writer: Writer | None = None
        self._file = ""
        _write_configs(self.staged, config, self.specs)
        _write_tokenizer(self.staged, tokenizer)
        if generation and (Path(generation) / GENERATION).is_file():
            shutil.copyfile(Path(generation) / GENERATION, self.staged / GENERATION)
        if len(set(self.files.values())) > 1:
            _write_index(self.staged, self.files, self.specs)

    def add(self, name: str, parts: Iterable[torch.Tensor]) -> None:
        """Write the next tensor of `specs`, cast to its dtype there; as `tensorfile.Writer.add`."""
        if self.files[name] != self._file:
            self._finish_file()
            self._file = self.files[name]
            held = {n: s for n, s in self.specs.items() if self.files[n] == self._file}
            self._writer = Writer(self.staged / self._file, held)
        assert self._writer is not None
        self._writer.add(name, parts)

    def publish(self) -> None:
        """Close the last file and give the folder its name; a former export goes.

        The folder has its name once all of it is on the disk, and the former one goes after that.
        """
        self._finish_file()
        for path in (*self.staged.iterdir(), self.staged):
            _sync(path)
        shutil.rmtree(self._former, ignore_errors=True)
        if self.out.exists():
            os.rename(self.out, self._former)
        os.rename(self.staged, self.out)
        _sync(self.out.parent)
        shutil.rmtree(self._former, ignore_errors=True)

    def discard(self) -> None:
        """Remove what is not published; nothing to do after `publish`."""
        if self._writer is not None:
            self._writer.abandon()
        shutil.rmtree(self.staged, ignore_errors=True)

    def _finish_file(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def plan(specs: Mapping[str, Spec], max_shard_bytes: int) -> dict[str, str]:
    """Which file each tensor goes to: files are filled in order, none beyond `max_shard_bytes`.

    A tensor that is larger than that has a file of its own.
    """
    shards: list[list[str]] = [[]]
    used = 0
    for name, spec in specs.items():
        if shards[-1] and used + spec.num_bytes > max_shard_bytes:
            shards.append([])
            used = 0
        shards[-1].append(name)
        used += spec.num_bytes
    if len(shards) == 1:
        return dict.fromkeys(specs, SINGLE)
    count = len(shards)
    return {
        name: f"model-{number:05d}-of-{count:05d}.safetensors"
        for number, names in enumerate(shards, 1)
        for name in names
    }


def explained(error: OSError | DsLlamaError, out: str | Path) -> DsLlamaError:
    """What the user is told when the disk refuses an export to `out`."""
    if isinstance(error, DsLlamaError):
        return error
    return CheckpointError(
        f"the export failed: {error.strerror or error}; a former export is as it was",
        where=str(error.filename or out),
        remedy="free space there, make the folder writable, or export elsewhere",
    )


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _require_elements(specs: Mapping[str, Spec]) -> None:
    """A partitioned parameter that nobody gathered has none, and would leave as an empty tensor."""
    for name, spec in specs.items():
        if spec.numel == 0:
            raise ModelError(
                f"{name} has no elements (shape {list(spec.shape)})",
                where=name,
                remedy="export the model that the engine trains, not a part of it after "
                "partitioning",
            )


def _check_target(out: Path) -> None:
    """A former export is replaced, so nothing may be in it that no export writes."""
    if not out.exists():
        return
    if out == Path.cwd():
        raise CheckpointError(
            "an export takes the place of its folder, and this is the one that you are in",
            where=str(out),
            remedy="name a folder in it",
        )
    found = sorted(out.iterdir()) if out.is_dir() else [out]
    foreign = [path for path in found if path == out or not _is_ours(path)]
    if foreign or (found and not (out / "config.json").is_file()):
        raise CheckpointError(
            f"there is something else where the export should go: {(foreign or found)[0].name}",
            where=str(out),
            remedy="give a new folder, or one that holds nothing but an export",
        )


def _is_ours(path: Path) -> bool:
    written = ("config.json", GENERATION, INDEX, *TOKENIZER_FILES)
    return path.is_file() and (path.name in written or bool(_SHARD.fullmatch(path.name)))


def _write_configs(folder: Path, config: LlamaConfig, specs: Mapping[str, Spec]) -> None:
    names = {str(spec.dtype).removeprefix("torch.") for spec in specs.values()}
    dtype = names.pop() if len(names) == 1 else "float32"
    hf = config.to_hf()
    # transformers 5 reads either key, 4 the older one.
    _write_json(folder / "config.json", {**hf, "torch_dtype": dtype})
    ids = {key: hf.get(key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    known = {key: value for key, value in ids.items() if value is not None}
    _write_json(folder / GENERATION, {"_from_model_config": True, **known})


def _write_index(folder: Path, files: Mapping[str, str], specs: Mapping[str, Spec]) -> None:
    total = {
        "total_parameters": sum(spec.numel for spec in specs.values()),
        "total_size": sum(spec.num_bytes for spec in specs.values()),
    }
    _write_json(folder / INDEX, {"metadata": total, "weight_map": dict(files)})


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")


def _write_tokenizer(folder: Path, tokenizer: Any) -> None:
    """As they are from a model's folder; a tokenizer.model alone is completed for transformers."""
    if not isinstance(tokenizer, (str, Path)):
        if tokenizer is not None:
            tokenizer.save(folder)
        return
    source = Path(tokenizer)
    if source.is_file() or _is_bare(source):
        load_tokenizer(source).save(folder)
        return
    for file in (source / name for name in TOKENIZER_FILES):
        if file.is_file():
            shutil.copyfile(file, folder / file.name)


def _is_bare(folder: Path) -> bool:
    model, *others = (folder / name for name in TOKENIZER_FILES)
    return model.is_file() and not any(file.is_file() for file in others)

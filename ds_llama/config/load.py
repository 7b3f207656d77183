"""Read a run JSON with what it names, lay the command line over it, check all of it at once."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ds_llama.config import overrides as overriding
from ds_llama.config import shipped
from ds_llama.config.base import problems_of
from ds_llama.config.deepspeed import check
from ds_llama.config.files import read_object
from ds_llama.config.model import LlamaConfig
from ds_llama.config.problems import Problem, at, did_you_mean, raise_errors
from ds_llama.config.run import Run
from ds_llama.config.runchecks import check_run
from ds_llama.config.source import read_model
from ds_llama.errors import CallError, ConfigError, ConfigErrors

DEFAULT_DEEPSPEED = "zero2"


def load_run(source: str | os.PathLike[str] | Mapping[str, Any], *overrides: str) -> Run:
    """A Run from its file or its dict, with `key.path=value` overrides laid over it.

    The DeepSpeed JSON that it names is read in, overrides reach into it; `model.config` and
    `deepspeed` are relative to the run's file (to the working directory for a dict). Raises
    CallError (exit 2) for a missing file, bad JSON or an unknown override path, else ConfigErrors
    with every problem of run, model and DeepSpeed JSON at once.
    """
    if isinstance(source, Mapping):
        return _Reader("run", Path(), None).read(copy.deepcopy(dict(source)), overrides)
    path = Path(source)
    return read_run(read_object(path), path, *overrides)


def read_run(
    content: Mapping[str, Any],
    path: Path,
    *overrides: str,
    world_size: int | None = None,
    device: str | None = None,
) -> Run:
    """`load_run` for the content of the file at `path`, which is not read again.

    world_size, device: where they are known, what the DeepSpeed JSON meets there is among the
    problems.
    """
    reader = _Reader(str(path), path.parent, path)
    reader.known = {"world_size": world_size, "device": device}
    return reader.read(copy.deepcopy(dict(content)), overrides)


class _Reader:
    """One reading: what the messages name, and which keys came from the command line."""

    def __init__(self, label: str, base: Path, path: Path | None) -> None:
        self.label, self.base, self.path = label, base, path
        self.deepspeed_file: str | None = None
        self.known: dict[str, Any] = {}
        self.overridden: set[str] = set()

    def read(self, tree: dict[str, Any], texts: tuple[str, ...]) -> Run:
        if tree.get("deepspeed") is None:
            tree["deepspeed"] = DEFAULT_DEEPSPEED
        for override in [overriding.parse(text) for text in texts]:
            overriding.check_path(override)
            overriding.apply(tree, override, self.read_deepspeed)
            self.overridden.add(override.key)
        tree.setdefault("output", f"runs/{self.path.stem if self.path else 'run'}")
        if isinstance(tree["deepspeed"], str):
            tree["deepspeed"] = self.read_deepspeed(tree["deepspeed"])
        return self.checked(tree)

    def read_deepspeed(self, text: str) -> dict[str, Any]:
        """The content of the DeepSpeed JSON that a run names by path or by shipped name."""
        file = shipped.find(text)
        if file is None and text.endswith(".json"):
            file = self.base / text
        if file is None:
            raise CallError(
                f"no DeepSpeed JSON is called {text!r}",
                where=at(self.label, "deepspeed"),
                remedy=f"{did_you_mean(text, shipped.names())} (or the path of a .json file)",
            )
        self.deepspeed_file = os.path.normpath(file)
        return read_object(Path(self.deepspeed_file))

    def checked(self, tree: dict[str, Any]) -> Run:
        """Run, architecture and DeepSpeed JSON; every problem of the three, raised once."""
        errors: list[ConfigError] = []
        run: Run | None = None
        model: LlamaConfig | None = None
        try:
            run = Run.model_validate(tree)
            found = [problem for problem in check_run(run) if problem.severity == "error"]
            errors += [problem.to_error(self.label) for problem in found]
        except ValidationError as error:
            found = [p for p in problems_of(error, Run) if p.key.split(".")[0] != "model"]
            errors += [problem.to_error(self.label) for problem in found]
        try:
            model = read_model(tree.get("model"), path=self.label, base=self.base)
        except ConfigErrors as error:
            errors += error.errors
        except ConfigError as error:
            errors.append(error)
        place, prefix = self.deepspeed_place()
        if isinstance(tree["deepspeed"], Mapping):
            problems = check(tree["deepspeed"], dialect="run", run=run, model=model, **self.known)
            errors += [p.to_error(place, prefix) for p in problems if p.severity == "error"]
        raise_errors([self.placed(error) for error in errors])
        assert run is not None
        run._path, run._architecture = self.path, model
        run._deepspeed_place = (place, prefix)
        run._overridden = frozenset(self.overridden)
        return run

    def deepspeed_place(self) -> tuple[str, str]:
        """The file, and the key in it, that messages about the DeepSpeed JSON begin with."""
        return (self.deepspeed_file, "") if self.deepspeed_file else (self.label, "deepspeed")

    def placed(self, error: ConfigError) -> ConfigError:
        """The error, at the command line if that is where its value came from."""
        return placed(error, self.label, self.deepspeed_file, frozenset(self.overridden))


def placed(
    error: ConfigError, label: str, deepspeed_file: str | None, overridden: frozenset[str]
) -> ConfigError:
    """`error` with `where` at the command line, if its key was given there."""
    key = error.where
    if deepspeed_file and key.startswith(f"{deepspeed_file}:"):
        key = "deepspeed." + key.removeprefix(f"{deepspeed_file}:")
    else:
        key = key.removeprefix(f"{label}:")
    parts = key.split(".")
    if not any(".".join(parts[: n + 1]) in overridden for n in range(len(parts))):
        return error
    moved = ConfigError(error.what, where=f"{overriding.WHERE}: {key}", remedy=error.remedy)
    moved.code = error.code
    return moved


def warnings_of(
    run: Run, model: LlamaConfig | None = None, deepspeed: list[Problem] | None = None
) -> list[Problem]:
    """What is legal in a run, and slow or surprising; keys are paths in the run JSON.

    deepspeed: what `check` found in its DeepSpeed JSON, if that has been asked already.
    """
    model = model or run.architecture
    if deepspeed is None:
        deepspeed = check(run.deepspeed, dialect="run", run=run, model=model)
    inner = [replace(problem, key=f"deepspeed.{problem.key}") for problem in deepspeed]
    found = [*check_run(run, model), *inner]
    return [problem for problem in found if problem.severity == "warning"]

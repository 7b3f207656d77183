"""Cross checks: each a small function that yields Problems, found by itself.

A rule is a public function of a module in this folder that takes a Context. It meets only values
that fit the schema: what the schema refused is not in `context.deepspeed`.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

from ds_llama.config.problems import Problem

if TYPE_CHECKING:
    from ds_llama.config.model import LlamaConfig
    from ds_llama.config.run import Run


AUTO = "auto"


class Unreadable(Exception):
    """A rule asked for a value that the schema refused, or that is not known yet: it has nothing to
    say about this JSON."""


@dataclass(frozen=True)
class Context:
    """What a rule may look at; None for what is not known. `broken`: keys that were refused,
    which `given`, the whole JSON, still has."""

    deepspeed: Mapping[str, Any]
    dialect: str = "deepspeed"
    run: Run | None = None
    model: LlamaConfig | None = None
    world_size: int | None = None
    device: str | None = None
    broken: frozenset[str] = frozenset()
    given: Mapping[str, Any] = field(default_factory=dict)

    def get(self, path: str, default: Any = None) -> Any:
        """The value at a dotted path; `default` when it is absent, null or "auto"."""
        here: Any = self.deepspeed
        names = path.split(".")
        if any(".".join(names[: n + 1]) in self.broken for n in range(len(names))):
            raise Unreadable(path)
        for name in names:
            here = here.get(name) if isinstance(here, Mapping) else None
        return default if here is None or here == "auto" else here

    def has(self, path: str) -> bool:
        """Whether the path holds a value other than null."""
        value = self.get(path)
        *parents, last = path.split(".")
        owner = self.get(".".join(parents)) if parents else self.deepspeed
        return value is not None or (isinstance(owner, Mapping) and owner.get(last) is not None)

    @property
    def stage(self) -> int:
        self._known("zero_optimization.stage")
        return int(self.get("zero_optimization.stage", 0))

    def enabled(self, section: str) -> bool:
        self._known(f"{section}.enabled")
        return bool(self.get(f"{section}.enabled", False))

    @property
    def bf16(self) -> bool:
        """bf16 in either spelling; "auto" counts as on where nothing else is."""
        section = "bf16" if "bf16" in self.deepspeed else "bfloat16"
        return self.enabled(section)

    @property
    def half_precision(self) -> str | None:
        """Name of the half precision section that is on."""
        return "bf16" if self.bf16 else "fp16" if self.enabled("fp16") else None

    def offload(self, what: str) -> str | None:
        """Device of `offload_optimizer` or `offload_param`; None for "none"."""
        self._known(f"zero_optimization.{what}.device")
        device = self.get(f"zero_optimization.{what}.device", "none")
        return None if device == "none" else str(device)

    def _known(self, path: str) -> None:
        """Unreadable where the Trainer will fill the value in, and only it knows with what."""
        section, _, name = path.rpartition(".")
        owner = self.get(section)
        if self.dialect == "huggingface" and isinstance(owner, Mapping) and owner.get(name) == AUTO:
            raise Unreadable(path)

    @property
    def unsaved(self) -> dict[str, str]:
        """Keys that keep a part of the run's state where DeepSpeed cannot resume it, and which.

        SuperOffload: the moments belong to an optimizer in another process, which nobody asks for
        them (superoffload/superoffload_utils.py:74).
        """
        key = "zero_optimization.offload_optimizer.super_offload"
        return {key: "the moments of SuperOffload"} if self.get(key, False) else {}


Rule = Callable[[Context], Iterator[Problem]]


@cache
def all_rules() -> tuple[Rule, ...]:
    """Every rule, by module name and then in the order of the file."""
    rules: list[Rule] = []
    for module in sorted(pkgutil.iter_modules(__path__), key=lambda module: module.name):
        loaded = importlib.import_module(f"{__name__}.{module.name}")
        rules += [
            function
            for name, function in vars(loaded).items()
            if inspect.isfunction(function)
            and function.__module__ == loaded.__name__
            and not name.startswith("_")
        ]
    return tuple(rules)


def run_rules(context: Context) -> list[Problem]:
    """What all rules find."""
    found: list[Problem] = []
    for rule in all_rules():
        try:
            for problem in rule(context):
                found.append(problem)
        except Unreadable:
            continue
    return found

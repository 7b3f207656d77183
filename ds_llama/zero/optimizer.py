"""The optimizer that the run asks for, over groups by the run's rows and the model's traits."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from ds_llama.config.optimizer import SGD, Adagrad, AdamW, GroupConfig, Lion, Muon, OptimizerConfig
from ds_llama.errors import ConfigError
from ds_llama.model.traits import Traits, decay_groups
from ds_llama.zero import compilers, elementwise, world

Group = dict[str, Any]
"""What torch calls a parameter group. `row`: index of the row of `optimizer.groups`, or None.
`lr_ratio`: its learning rate over the run's, under every schedule."""


def json_groups(model: nn.Module, traits: Traits, weight_decay: float) -> list[Group]:
    """Groups with and without decay, for the optimizer of the DeepSpeed JSON."""
    decayed, undecayed = decay_groups(model, traits)
    groups: list[Group] = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": undecayed, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def parameter_groups(
    model: nn.Module, traits: Traits, section: OptimizerConfig, label: str = "run"
) -> list[Group]:
    """Every trainable parameter once: those of no row first, then row by row.

    A parameter belongs to the first row that matches its name. Norms and biases, by the traits, are
    not decayed unless a row says so. Under Muon a group holds matrices of the blocks or none.
    Raises ModelError for a parameter that no row of the traits matches, ConfigError for a pattern
    that matches no parameter, a row whose parameters all belong to rows before it, or one that
    clips what Muon updates.
    """
    undecayed = {id(parameter) for parameter in decay_groups(model, traits)[1]}
    matrices = hidden_matrices(model, traits) if isinstance(section, Muon) else set()
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    rows = rows_of([name for name, _ in named], section.groups, label)
    groups: dict[tuple[int, bool, float], Group] = {}
    for name, parameter in named:
        row, muon = rows[name], id(parameter) in matrices
        given = section.groups[row] if row is not None else None
        if muon and given is not None and given.gradient_clipping is not None:
            raise ConfigError(
                f"row {row} clips {name}, which Muon updates: its update is as large whatever the "
                "gradient's norm is",
                where=f"{label}:optimizer.groups.{row}.gradient_clipping",
                remedy="remove it, or name parameters outside the blocks' matrices",
            )
        decay = 0.0 if id(parameter) in undecayed else section.weight_decay
        if given is not None and given.weight_decay is not None:
            decay = given.weight_decay
        key = (-1 if row is None else row, not muon, -decay)
        group = groups.setdefault(key, _group(section, row, decay, muon))
        group["params"].append(parameter)
    return [groups[key] for key in sorted(groups)]


def _group(section: OptimizerConfig, row: int | None, decay: float, muon: bool) -> Group:
    lr = section.lr
    if isinstance(section, Muon) and not muon:
        lr = section.adam_lr
    if row is not None and section.groups[row].lr is not None:
        lr = section.groups[row].lr
    ratio = lr / section.lr if lr != section.lr else 1.0
    group: Group = {"params": [], "lr": lr, "lr_ratio": ratio, "weight_decay": decay, "row": row}
    if isinstance(section, Muon):
        group["use_muon"] = muon
    return group


def rows_of(
    names: Sequence[str], rows: Sequence[GroupConfig], label: str = "run"
) -> dict[str, int | None]:
    """Which row each parameter belongs to; None for none."""
    for index, row in enumerate(rows):
        for pattern in row.parameters:
            if not any(fnmatchcase(name, pattern) for name in names):
                raise ConfigError(
                    f"{pattern!r} matches no trainable parameter of the model",
                    where=f"{label}:optimizer.groups.{index}.parameters",
                    remedy=f"the nearest names are {', '.join(_nearest(pattern, names))}",
                )
    found = {name: _first(name, rows) for name in names}
    for index in range(len(rows)):
        if index not in found.values():
            raise ConfigError(
                f"every parameter that row {index} matches belongs to a row before it",
                where=f"{label}:optimizer.groups.{index}.parameters",
                remedy="put it before them, or remove it: the first row that matches a name wins",
            )
    return found


def _first(name: str, rows: Sequence[GroupConfig]) -> int | None:
    for index, row in enumerate(rows):
        if any(fnmatchcase(name, pattern) for pattern in row.parameters):
            return index
    return None


def _nearest(pattern: str, names: Sequence[str]) -> Sequence[str]:
    wanted = pattern.replace("*", "").strip(".")
    return get_close_matches(wanted, names, n=3, cutoff=0.2) or names[:3]


def hidden_matrices(model: nn.Module, traits: Traits) -> set[int]:
    """Ids of the parameters that Muon is for: matrices inside the model's blocks.

    A parameter that ZeRO-3 has partitioned already is flat; `ds_shape` is what it is as a matrix.
    """
    blocks = traits.block_class or ()
    return {
        id(parameter)
        for module in model.modules()
        if isinstance(module, blocks)
        for parameter in module.parameters()
        if len(getattr(parameter, "ds_shape", parameter.shape)) == 2
    }


def build(
    section: OptimizerConfig, groups: list[Group], *, offloaded: bool
) -> torch.optim.Optimizer:
    """The optimizer of `section` over `groups`, whose own values win over the section's.

    torch's own, fused, wherever it has one: on the device and on the host they update in one pass
    and need no compilation. `DeepSpeedCPUAdam` for AdamW whose state lives on the host
    (`offloaded`): DeepSpeed's partial and asynchronous offloads work with that one only.
    """
    return _BUILDERS[section.type](section, groups, offloaded)


def _adamw(section: AdamW, groups: list[Group], offloaded: bool) -> torch.optim.Optimizer:
    settings = {"lr": section.lr, "betas": section.betas, "eps": section.eps}
    if offloaded:
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        return DeepSpeedCPUAdam(groups, **settings, adamw_mode=True)
    return torch.optim.AdamW(groups, **settings, fused=True)


def _sgd(section: SGD, groups: list[Group], offloaded: bool) -> torch.optim.Optimizer:
    momentum, nesterov = section.momentum, section.nesterov
    return torch.optim.SGD(groups, lr=section.lr, momentum=momentum, nesterov=nesterov, fused=True)


def _lion(section: Lion, groups: list[Group], offloaded: bool) -> torch.optim.Optimizer:
    return elementwise.Lion(groups, section.lr, section.betas, section.weight_decay)


def _adagrad(section: Adagrad, groups: list[Group], offloaded: bool) -> torch.optim.Optimizer:
    return elementwise.Adagrad(groups, section.lr, section.eps, section.weight_decay)


_COMPILED = ("muon_update", "zeropower_via_newtonschulz5", "zeropower_via_gram_newtonschulz")


def _muon(section: Muon, groups: list[Group], offloaded: bool) -> torch.optim.Optimizer:
    with compilers.put_off():
        from deepspeed.runtime.zero.muon import muon_optimizer, original_muon

    if world.device().type != "cuda":
        # A compilation of half a minute, in every rank and in the middle of the first step.
        for name in (
            "muon_update",
            "zeropower_via_newtonschulz5",
            "zeropower_via_gram_newtonschulz",
        ):
            eager = inspect.unwrap(getattr(original_muon, name))
            setattr(original_muon, name, eager)
            if hasattr(muon_optimizer, name):
                setattr(muon_optimizer, name, eager)
    own = {"momentum": section.momentum, "ns_method": section.ns_method}
    adam = {"betas": section.betas, "eps": section.eps}
    for group in groups:
        group.update(own if group["use_muon"] else adam)
        for parameter in group["params"]:
            parameter.use_muon = group["use_muon"]  # what ZeRO asks, stage_1_and_2.py:2752
    return muon_optimizer.MuonWithAuxAdam(groups, torch.optim.AdamW, {"fused": True})


_BUILDERS: dict[str, Callable[[Any, list[Group], bool], torch.optim.Optimizer]] = {
    "AdamW": _adamw,
    "SGD": _sgd,
    "Lion": _lion,
    "Adagrad": _adagrad,
    "Muon": _muon,
}

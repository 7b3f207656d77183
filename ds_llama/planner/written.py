"""A strategy's DeepSpeed JSON as a file: what the run says, with every size for its model."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ds_llama.config.deepspeed import BATCH_KEYS, check
from ds_llama.config.fill import one_spelling
from ds_llama.config.problems import did_you_mean
from ds_llama.errors import CallError
from ds_llama.planner.plan import Plan
from ds_llama.planner.strategies import Candidate

# Written although the run's JSON may not say them: what depends on the model, the batch and the
# world, so that the file means the same to DeepSpeed as to this package.
_MICRO_KEYS = BATCH_KEYS[1:]
_TOP = {*_MICRO_KEYS, "communication_data_type"}
_SIZES = {
    *("reduce_bucket_size", "allgather_bucket_size", "sub_group_size", "overlap_comm"),
    *("stage3_prefetch_bucket_size", "stage3_param_persistence_threshold"),
    *("stage3_model_persistence_threshold", "stage3_max_live_parameters"),
    *("stage3_max_reuse_distance", "buffer_size"),
}


def deepspeed_json(candidate: Candidate) -> dict[str, Any]:
    """The DeepSpeed JSON of a strategy: it resolves to what was planned, at the same world size.

    Only what the run's own JSON says, what the strategy adds, and what depends on the model and
    the batch; no default that everybody has.
    """
    resolved = candidate.resolved.deepspeed
    source = one_spelling(candidate.run.deepspeed)
    tree = _said(resolved, source, _TOP)
    if source.get(BATCH_KEYS[0]) == "auto":
        del tree[BATCH_KEYS[0]]  # the other two say it for any world
    zero = resolved["zero_optimization"]
    tree["zero_optimization"] = _said(zero, tree.get("zero_optimization", {}), _SIZES)
    if "data_types" in resolved:
        tree["data_types"] = resolved["data_types"]
    order = list(resolved)
    tree = {key: tree[key] for key in sorted(tree, key=order.index)}
    return _without_idle(_with_changed(tree, resolved))


def _with_changed(tree: dict[str, Any], resolved: Mapping[str, Any]) -> dict[str, Any]:
    """With the values that one release of DeepSpeed takes for unsaid and another does not."""
    for problem in check(tree, dialect="deepspeed"):
        if problem.code == "changed-default":
            *above, name = problem.key.split(".")
            section, source = tree, resolved
            for key in above:
                section, source = section.setdefault(key, {}), source[key]
            section[name] = source[name]
    return tree


def _without_idle(tree: dict[str, Any]) -> dict[str, Any]:
    """Without the sizes of which a rule says that they do nothing beside what else is there."""
    zero = tree["zero_optimization"]
    problems = check(tree, dialect="deepspeed")
    idle = {problem.key.rpartition(".")[2] for problem in problems if problem.severity == "error"}
    kept = {key: value for key, value in zero.items() if key not in idle & _SIZES}
    return {**tree, "zero_optimization": kept}


def _said(resolved: Mapping[str, Any], source: Mapping[str, Any], more: set[str]) -> dict[str, Any]:
    """Of the resolved values those that `source` has too, or whose names are in `more`."""
    found: dict[str, Any] = {}
    for name, value in resolved.items():
        inner = source.get(name)
        if isinstance(value, Mapping) and isinstance(inner, Mapping):
            found[name] = _said(value, inner, more & _SIZES)
        elif name in source or name in more:
            found[name] = value
    return found


def check_name(name: str, known: Sequence[str]) -> None:
    """Raise CallError unless there is a row of that name."""
    if name not in known:
        raise CallError(
            f"the plan has no strategy {name!r}",
            where="--strategy",
            remedy=did_you_mean(name, known),
        )


def check_target(target: str | os.PathLike[str], force: bool) -> None:
    """Raise CallError where `target` cannot be written, or is there and not to be replaced."""
    path = Path(target)
    if path.is_dir():
        raise CallError("is a folder", where=str(path), remedy="name a file in it, such as ds.json")
    if path.exists() and not force:
        raise CallError(
            "the file is there already",
            where=str(path),
            remedy="give --force to replace it, or another name",
        )
    if not path.parent.is_dir():
        raise CallError(
            f"there is no folder {path.parent}",
            where=str(path),
            remedy="make the folder first, or name one that is there",
        )


def write(target: str | os.PathLike[str], plan: Plan, name: str | None, force: bool) -> None:
    """Write the named or the recommended strategy's JSON, whole or not at all."""
    row = plan.strategy(name or plan.recommended or "")
    if row is None:
        raise CallError(
            f"there is nothing to write: {plan.reason}",
            where="--write",
            remedy="name a strategy with --strategy, or change the run",
        )
    text = json.dumps(deepspeed_json(row.candidate), indent=2) + "\n"
    path = Path(target)
    descriptor, beside = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(beside, 0o666 & ~_umask())
        if force:
            os.replace(beside, path)
        else:
            os.link(beside, path)  # fails where a file has come there in the meantime
    except FileExistsError:
        check_target(target, force)
        raise
    finally:
        if os.path.exists(beside):
            os.unlink(beside)


def _umask() -> int:
    value = os.umask(0)
    os.umask(value)
    return value

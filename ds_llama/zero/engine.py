"""The only call to `deepspeed.initialize`, and what may be read from the engine it returns."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import deepspeed
import torch
from deepspeed.runtime import torch_autocast
from deepspeed.runtime.zero.parameter_offload import FWD_MODULE_STACK
from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator
from torch import nn

from ds_llama.errors import RunError
from ds_llama.zero import compilers, holdings, nonfinite, swap, vocabulary


def create(
    model: nn.Module,
    config: dict[str, Any] | str | None,
    *,
    optimizer: Any = None,
    model_parameters: Any = None,
    **kwargs: Any,
) -> tuple[Any, Any, Any, Any]:
    """`deepspeed.initialize` over a checked JSON; returns its four values.

    Give `optimizer`, or `model_parameters` for the optimizer that the JSON names, not both.
    """
    # What an engine before this one in the same process has left on (torch_autocast.py:27).
    torch_autocast.TORCH_AUTOCAST_INITIALIZED = False
    with warnings.catch_warnings(), compilers.put_off():
        warnings.filterwarnings("ignore", module=r"deepspeed\.")
        created = deepspeed.initialize(
            model=model,
            config=config,
            optimizer=optimizer,
            model_parameters=model_parameters,
            **kwargs,
        )
    share_moments(created[0])
    vocabulary.freeze(created[0].module)
    holdings.watch(created[0])
    return created


def share_moments(engine: Any) -> None:
    """Let both optimizers of a partial offload keep their moments in one place; after every load.

    Stage 3 updates what stays on the device with an AdamW of its own (stage3.py:317), which neither
    its checkpoints nor what reads the engine's optimizer know of.
    """
    sharded = engine.optimizer
    if getattr(sharded, "backup_optimizer", None) is None:
        return
    sharded.backup_optimizer.state = shared = sharded.optimizer.state
    for group in sharded.backup_optimizer.param_groups:
        group["params"] = []  # a load leaves masters here, which every step would update once more
    for index, group in enumerate(sharded.fp32_partitioned_groups_flat):
        if sharded.subgroup_to_device[index] != "cpu" and "step" in shared.get(group, {}):
            # DeepSpeedCPUAdam counts in an int, torch's AdamW in a tensor.
            shared[group]["step"] = torch.tensor(float(shared[group]["step"]))


def before_update(engine: Any, hook: Callable[[Any], bool | None]) -> None:
    """Call `hook(engine)` before every update, whoever's loop calls `engine.step()`.

    Runs on all ranks, after the last backward of a window, when the averaged gradient is in place
    (`pieces.gradients`). Hooks run in the order in which they were given. Where one says False,
    which all ranks have to agree on, there is no update.
    """
    update = engine._take_model_step  # the one place where an engine updates (engine.py:3505)

    def hooked(*args: Any, **kwargs: Any) -> None:
        if False not in [each(engine) for each in engine.ds_llama_before_update]:
            update(*args, **kwargs)

    if not hasattr(engine, "ds_llama_before_update"):
        engine.ds_llama_before_update = []
        engine._take_model_step = hooked
    engine.ds_llama_before_update.append(hook)


def step(engine: Any) -> None:
    """`engine.step()`; RunError, on all ranks, where fp16's loss scale cannot get any smaller."""
    try:
        engine.step()
    except Exception as error:
        # A bare Exception with this text (deepspeed/runtime/fp16/loss_scaler.py).
        if "loss scale already at minimum" not in str(error):
            raise
        raise RunError(
            "fp16 overflows at the smallest loss scale, so no update can be made: "
            f"{nonfinite.first(engine)} is not finite",
            where="deepspeed:fp16",
            remedy="lower optimizer.lr, use bf16 instead, or look at the data of these steps",
        ) from error


def loss_scale(engine: Any) -> float | None:
    """The loss scale that fp16 works with now; None in other precisions."""
    if not engine.fp16_enabled():
        return None
    return float(engine.optimizer.cur_scale if hasattr(engine.optimizer, "cur_scale") else 1.0)


def scale_is_dynamic(engine: Any) -> bool:
    """Whether fp16's loss scale is lowered at each overflow, so that skipped updates may end."""
    return bool(engine.fp16_enabled() and engine.dynamic_loss_scale())


def inner_optimizers(engine: Any) -> list[torch.optim.Optimizer]:
    """What makes the updates, one flat partition at a time at stages 1 to 3.

    With a part of the optimizer on the device (`offload_optimizer.ratio` below 1) stage 3 updates
    that part with an AdamW of its own, whose first group is no one else's (stage3.py:317).
    """
    outer = engine.optimizer
    inner = getattr(outer, "optimizer", outer)
    backup = getattr(outer, "backup_optimizer", None)
    if backup is None:
        return [inner]
    first = inner.param_groups[0]
    backup.param_groups[0].update({k: first[k] for k in ("row", "lr_ratio") if k in first})
    return [inner, backup]


def set_lr(engine: Any, lr: float) -> None:
    """Learning rate of the next update; a group's own keeps its ratio to it."""
    for optimizer in inner_optimizers(engine):
        for group in optimizer.param_groups:
            group["lr"] = lr * group.get("lr_ratio", 1.0)


def get_lr(engine: Any) -> float:
    """The learning rate that each group's own is a ratio of."""
    groups = engine.optimizer.param_groups
    first = next((g for g in groups if g.get("lr_ratio", 1.0) == 1.0), groups[0])
    return float(first["lr"]) / (first.get("lr_ratio", 1.0) or 1.0)


def adam_step(engine: Any) -> int | None:
    """Updates that Adam counts, by its own bias-correction `step`; None before the first.

    Half precision at stage 0 counts one update too many (a phantom step at initialisation), which
    is why that combination is refused.
    """
    base = getattr(engine.optimizer, "optimizer", engine.optimizer)
    steps = {int(state["step"]) for state in base.state.values() if "step" in state}
    return max(steps) if steps else None


def counters(engine: Any) -> dict[str, Any]:
    """Numbers of the engine that a resumed one goes on with, JSON; `set_counters` takes them.

    groups: the hyperparameters that an optimizer of the DeepSpeed JSON has now; None where the run
    has an optimizer of its own, which says them anew.
    """
    scheduler = engine.lr_scheduler
    return {
        "optimizer_step": adam_step(engine),
        "loss_scaler": _numbers(vars(_scaler(engine))) if engine.fp16_enabled() else None,
        "counters": {name: getattr(engine, name) for name in _COUNTERS},
        "lr_scheduler": scheduler.state_dict() if hasattr(scheduler, "state_dict") else None,
        "groups": [_numbers(group) for group in engine.optimizer.param_groups],
    }


def set_counters(engine: Any, saved: dict[str, Any], *, groups: bool) -> None:
    """Take what `counters` gave; `groups`: the optimizer's hyperparameters too, if as many."""
    for name, value in saved["counters"].items():
        setattr(engine, name, value)
    # Of whole windows, which may be of another number now.
    engine.micro_steps = engine.global_steps * engine.gradient_accumulation_steps()
    if engine.fp16_enabled():
        vars(_scaler(engine)).update(saved["loss_scaler"] or {})
    if groups and len(saved["groups"]) == len(engine.optimizer.param_groups):
        for group, values in zip(engine.optimizer.param_groups, saved["groups"], strict=True):
            group.update({k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
    if groups and saved["lr_scheduler"] is not None and engine.lr_scheduler is not None:
        engine.lr_scheduler.load_state_dict(saved["lr_scheduler"])


_COUNTERS = ("global_steps", "global_samples", "skipped_steps")


def _scaler(engine: Any) -> Any:
    return engine.optimizer.loss_scaler


def _numbers(values: Mapping[str, Any]) -> dict[str, Any]:
    """Those that are numbers, or pairs of them (betas)."""
    plain = (bool, int, float)
    return {
        key: value
        for key, value in values.items()
        if isinstance(value, plain)
        or (isinstance(value, (tuple, list)) and all(isinstance(v, plain) for v in value) and value)
    }


def recount(engine: Any) -> None:
    """Let DeepSpeedCPUAdam round as if it had made every update itself; after a resume.

    Its C++ multiplies beta^step up from update to update, and takes a power where it is given a
    step that does not follow (csrc/includes/cpu_adam.h:71): the last bits differ.
    """
    inner = inner_optimizers(engine)[0]
    if not hasattr(inner, "ds_opt_adam"):
        return
    nothing = [torch.zeros(1) for _ in range(4)]
    settings = (*inner.param_groups[0]["betas"], 1e-8, 0.0, True)
    for step in range(1, (adam_step(engine) or 0) + 1):
        inner.ds_opt_adam.adam_update(inner.opt_id, step, 0.0, *settings, *nothing)


def parameter_order(engine: Any) -> list[str] | None:
    """Names in the order of the optimizer's groups at stage 0, whose files number parameters only.

    None at stages 1 to 3, where DeepSpeed's files have them.
    """
    if engine.zero_optimization_stage() > 0 or orthogonalises(engine):
        return None
    names = {id(parameter): name for name, parameter in engine.module.named_parameters()}
    return [names[id(p)] for group in engine.optimizer.param_groups for p in group["params"]]


def refresh_weights(engine: Any) -> None:
    """The weights that forward uses from their masters, as after an update; collective.

    All-gathered at stages 1 and 2, each rank's slices and the persistent parameters at stage 3,
    nothing at stage 0.
    """
    stage, optimizer = engine.zero_optimization_stage(), engine.optimizer
    if stage in (1, 2):
        optimizer.update_lp_params()
    elif stage == 3:
        optimizer._partition_all_parameters()  # what is still gathered would stay as it is
        for index in range(len(optimizer.fp32_partitioned_groups_flat)):
            with swap.resident(engine, index):
                optimizer._reassign_or_swap_out_partitioned_parameters(index)
        optimizer.invalidate_secondary_tensor()
        if optimizer.persistent_parameters:
            optimizer.persistent_parameters[0].all_gather(optimizer.persistent_parameters)


def orthogonalises(engine: Any) -> bool:
    """Whether a group is Muon's.

    ZeRO then has its update in the gradient's place before anything is measured, except where the
    optimizer is offloaded or bf16 accumulates in fp32 at stage 1: no norm is comparable.
    """
    return any(group.get("use_muon", False) for group in engine.optimizer.param_groups)


def gradient_norm(engine: Any) -> torch.Tensor | None:
    """Norm of the averaged gradient before clipping, at stage 0, where DeepSpeed keeps none.

    Read between the last backward and the step. At stages 1 to 3 the engine keeps the norm of its
    own step (`engine.get_global_grad_norm()`), and None is returned here.
    """
    if engine.zero_optimization_stage() > 0 or orthogonalises(engine):
        return None
    gradients = [p.grad for p in engine.module.parameters() if p.grad is not None]
    return torch.nn.utils.get_total_norm(gradients)


def destroy(engine: Any) -> None:
    """`engine.destroy()`, which alone keeps a ZeRO-3 engine in memory as long as the process.

    Its module stays at the bottom of the stack of modules in their forward
    (deepspeed/runtime/zero/parameter_offload.py:315), and a method's cache without a bound holds
    modules and coordinators (partitioned_param_coordinator.py:633). The cache is every engine's:
    one that lives computes its entries again.
    """
    module = engine.module
    engine.destroy()
    FWD_MODULE_STACK[:] = [other for other in FWD_MODULE_STACK if other is not module]
    for method in vars(PartitionedParameterCoordinator).values():
        for cell in getattr(method, "__closure__", None) or ():  # behind DeepSpeed's own decorator
            if hasattr(cell.cell_contents, "cache_clear"):
                cell.cell_contents.cache_clear()

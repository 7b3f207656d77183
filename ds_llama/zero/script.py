"""`dl.initialize`: DeepSpeed's own signature, for scripts that exist already."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import deepspeed
from deepspeed.accelerator import get_accelerator
from torch import nn

from ds_llama.config.deepspeed import check
from ds_llama.config.files import read_object
from ds_llama.config.problems import raise_errors
from ds_llama.errors import CallError, ModelError
from ds_llama.model.traits import traits_of
from ds_llama.zero import engine as engines
from ds_llama.zero import recompute, world


def initialize(
    args: Any = None,
    model: nn.Module | None = None,
    optimizer: Any = None,
    model_parameters: Any = None,
    training_data: Any = None,
    lr_scheduler: Any = None,
    distributed_port: int = deepspeed.constants.TORCH_DISTRIBUTED_DEFAULT_PORT,
    mpu: Any = None,
    dist_init_required: bool | None = None,
    collate_fn: Any = None,
    config: str | Path | dict[str, Any] | None = None,
    mesh_param: Any = None,
    config_params: str | Path | dict[str, Any] | None = None,
) -> tuple[Any, Any, Any, Any]:
    """`deepspeed.initialize`, with the JSON checked first and the model's traits applied.

    Takes and returns what DeepSpeed 0.19.8 does: engine, optimizer, data loader, scheduler.
    A JSON key that DeepSpeed would ignore or misread is a ConfigErrors; the
    `activation_checkpointing` section recomputes the model's blocks. A model without traits is
    passed on as it is.
    """
    if model is None:
        raise CallError(
            "initialize was called without a model",
            where="ds_llama.initialize",
            remedy="pass model=, a torch.nn.Module",
        )
    given = config if config is not None else config_params
    given = given if given is not None else getattr(args, "deepspeed_config", None)
    if given is None:
        raise CallError(
            "no DeepSpeed JSON was given",
            where="ds_llama.initialize",
            remedy="pass config=, a path or a dict, or --deepspeed_config on the command line",
        )
    checked = _checked(given)
    try:
        recompute.apply(model, traits_of(model), checked.get("activation_checkpointing"))
    except ModelError:
        if "activation_checkpointing" in checked:
            raise
    if getattr(args, "deepspeed_config", None) is not None:
        args.deepspeed_config = None  # DeepSpeed refuses to be given both
    return engines.create(
        model,
        checked,
        args=args,
        optimizer=optimizer,
        model_parameters=model_parameters,
        training_data=training_data,
        lr_scheduler=lr_scheduler,
        distributed_port=distributed_port,
        mpu=mpu,
        dist_init_required=dist_init_required,
        collate_fn=collate_fn,
        mesh_param=mesh_param,
    )


def _checked(given: str | Path | dict[str, Any]) -> dict[str, Any]:
    """The JSON's content; ConfigErrors with everything in it that DeepSpeed would ignore."""
    content = given if isinstance(given, dict) else read_object(Path(given))
    place = "config" if isinstance(given, dict) else str(given)
    problems = check(content, world_size=world.world_size(), device=get_accelerator().device_name())
    errors = [problem.to_error(place) for problem in problems if problem.severity == "error"]
    raise_errors(errors)
    return content

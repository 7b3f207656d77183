"""`dl.initialize`: DeepSpeed's own signature, for scripts that exist already.

    import ds_llama as deepspeed        # instead of: import deepspeed

is the one line that such a script changes: `add_config_arguments`, `init_distributed`, `comm` and
the rest of what training scripts name are DeepSpeed's own.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import deepspeed
from deepspeed.accelerator import get_accelerator
from deepspeed.runtime.tensor_parallel.init_utils import load_ds_config
from torch import nn

from ds_llama.config.deepspeed import check
from ds_llama.config.files import read_object
from ds_llama.config.problems import at, raise_errors
from ds_llama.errors import CallError, ConfigError
from ds_llama.model.traits import find_traits
from ds_llama.zero import engine as engines
from ds_llama.zero import recompute, world

Given = str | os.PathLike[str] | dict[str, Any]


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
    config: Given | None = None,
    mesh_param: Any = None,
    config_params: Given | None = None,
) -> tuple[Any, Any, Any, Any]:
    """`deepspeed.initialize`, with the JSON checked first and the model's traits applied.

    Takes what DeepSpeed 0.19.8 takes, hands it on as it was given, and returns what DeepSpeed
    returns: engine, optimizer, data loader, scheduler. A script whose JSON passes trains as before,
    bit for bit; which parameters decay stays the script's business. What is added:

    - a key that DeepSpeed would ignore or misread is an error (ConfigErrors, all at once), and what
      is only suspicious is logged by rank 0; the file is strict JSON, without comments
    - an optimizer or scheduler that is given twice, in the JSON and in the call, is an error
    - the `activation_checkpointing` section recomputes the model's blocks, if its traits are known
    """
    if model is None:
        raise CallError(
            "initialize was called without a model",
            where="ds_llama.initialize",
            remedy="pass model=, a torch.nn.Module",
        )
    given = _given(args, config if config is not None else config_params)
    content = _read(given)
    place = "config" if isinstance(given, dict) else str(given)
    _refuse_twice(content, place, optimizer=optimizer, scheduler=lr_scheduler)
    traits = find_traits(model)
    silent = {"checkpointing-not-called"} if traits is not None else set()
    if mpu is not None or mesh_param is not None:
        silent.add("batch-world")  # the ranks that see different data are theirs to say
    _check(content, place, silent)
    init_distributed(
        dist_backend=get_accelerator().communication_backend_name(),
        distributed_port=distributed_port,
        dist_init_required=dist_init_required,
    )
    if traits is not None:
        recompute.apply(model, traits, content.get("activation_checkpointing"))
    return engines.create(
        model,
        _as_text(config),
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
        config_params=_as_text(config_params),
    )


def init_distributed(*args: Any, **kwargs: Any) -> None:
    """`deepspeed.init_distributed`, without a launcher too, and without compiling an op on CPU."""
    world.prepare()
    deepspeed.init_distributed(*args, **kwargs)


def _given(args: Any, config: Given | None) -> Given:
    """The one DeepSpeed JSON among the call's arguments; CallError for none and for two."""
    from_args = getattr(args, "deepspeed_config", None)
    if from_args is None:
        from_args = getattr(args, "deepscale_config", None)
    if config is not None and from_args is not None:
        raise CallError(
            "two DeepSpeed JSONs were given",
            where="ds_llama.initialize",
            remedy=f"pass config=, or --deepspeed_config {from_args} on the command line, not both",
        )
    given = config if config is not None else from_args
    if given is None:
        raise CallError(
            "no DeepSpeed JSON was given",
            where="ds_llama.initialize",
            remedy="pass config=, a path or a dict, or --deepspeed_config on the command line",
        )
    return given


def _read(given: Given) -> dict[str, Any]:
    """The JSON's content, from any form that DeepSpeed takes: dict, path, base64."""
    if isinstance(given, dict):
        return given
    if not os.path.exists(given):
        with suppress(ValueError):
            decoded = load_ds_config(os.fspath(given))
            if isinstance(decoded, dict) and decoded:
                return dict(decoded)
    return read_object(Path(given))


def _as_text(given: Given | None) -> str | dict[str, Any] | None:
    """DeepSpeed knows dicts and strings, no `Path`."""
    return given if given is None or isinstance(given, dict) else os.fspath(given)


def _refuse_twice(content: dict[str, Any], place: str, **passed: Any) -> None:
    """DeepSpeed takes the one that was passed and never mentions the other."""
    for name, value in passed.items():
        if value is not None and content.get(name) is not None:
            raise ConfigError(
                f"the JSON has a section {name!r} and the script passes one too, so the section "
                "would do nothing",
                where=f"{place}:{name}",
                remedy="remove the section, or what the script passes",
            )


def _check(content: dict[str, Any], place: str, silent: set[str]) -> None:
    """ConfigErrors with everything in the JSON that DeepSpeed would ignore; warnings are logged.

    silent: codes that do not hold for this call.
    """
    problems = check(content, world_size=world.world_size(), device=get_accelerator().device_name())
    problems = [problem for problem in problems if problem.code not in silent]
    raise_errors([problem.to_error(place) for problem in problems if problem.severity == "error"])
    for problem in problems if world.rank() == 0 else ():
        deepspeed.utils.logger.warning(
            f"{at(place, problem.key)}: {problem.message}; {problem.remedy}"
        )

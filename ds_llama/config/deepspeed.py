"""The whole DeepSpeed JSON of 0.19.8 as a schema, and the check against it.

DeepSpeed itself refuses unknown keys only in the sections that it parses with pydantic; at the
top level and in `optimizer, scheduler, checkpoint, data_types, aio, activation_checkpointing,
flops_profiler, torch_autocast, data_efficiency, autotuning, expert_parallel` a misspelt key
passes silently. Here none does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from ds_llama.config import keys_tools as tools
from ds_llama.config import keys_training as training
from ds_llama.config.base import shown
from ds_llama.config.keys import Key, Section, flag, real, text, whole
from ds_llama.config.keys_zero import NOWHERE, ZERO
from ds_llama.config.problems import Problem, moved_to, nearest
from ds_llama.config.unknown import VERSION, unknown_key

if TYPE_CHECKING:
    from ds_llama.config.model import LlamaConfig
    from ds_llama.config.run import Run

__all__ = ["BATCH_KEYS", "FILLED", "SCHEMA", "VERSION", "Dialect", "check", "lookup"]

Dialect = Literal["deepspeed", "huggingface", "run"]

# Where "auto" is filled in: transformers integrations/deepspeed.py `trainer_config_process` and
# `trainer_config_finalize`; accelerate utils/dataclasses.py `DeepSpeedPlugin.__post_init__` (which
# also overwrites steps_per_print) and accelerator.py `_prepare_deepspeed`. At any other key
# `deepspeed_config_process` of accelerate raises.
FILLED = frozenset(
    {
        *("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"),
        *("gradient_clipping", "steps_per_print", "fp16.enabled", "bf16.enabled"),
        *(f"optimizer.params.{name}" for name in ("lr", "betas", "eps", "weight_decay")),
        *(f"scheduler.params.warmup_{name}" for name in ("min_lr", "max_lr", "num_steps")),
        "scheduler.params.total_num_steps",
        *(
            f"zero_optimization.{name}"
            for name in (
                *("stage", "reduce_bucket_size", "stage3_prefetch_bucket_size"),
                *("stage3_param_persistence_threshold", "offload_optimizer.device"),
                *("stage3_gather_16bit_weights_on_model_save", "offload_param.device"),
                *("offload_optimizer.nvme_path", "offload_param.nvme_path"),
            )
        ),
    }
)

BATCH_KEYS = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")

SCHEMA = Section(
    {
        "train_batch_size": whole(None, 1),
        "train_micro_batch_size_per_gpu": whole(None, 1),
        "gradient_accumulation_steps": whole(None, 1),
        "managed_gradient_accumulation": flag(True),
        "gradient_clipping": real(1.0, 0),
        "zero_optimization": ZERO,
        "bf16": training.BF16,
        "bfloat16": Section(training.BF16.keys, gone='write "bf16"'),
        "fp16": training.FP16,
        "torch_autocast": training.TORCH_AUTOCAST,
        "data_types": training.DATA_TYPES,
        "communication_data_type": text(None, *training.COMMUNICATION_DTYPES),
        "seq_parallel_communication_data_type": text("fp32", *training.COMMUNICATION_DTYPES),
        "prescale_gradients": flag(),
        "gradient_predivide_factor": real(1.0, above=0),
        "gradient_allreduce_op": text("mean", "mean", "sum"),
        "disable_allgather": flag(stages=NOWHERE),  # runtime/config.py:491, and no reader
        "optimizer": training.OPTIMIZER,
        "scheduler": training.SCHEDULER,
        "zero_allow_untested_optimizer": flag(),
        "zero_force_ds_cpu_optimizer": flag(True),
        "activation_checkpointing": training.ACTIVATION_CHECKPOINTING,
        "checkpoint": training.CHECKPOINT,
        "datastates_ckpt": Key("object|bool", None),
        "dataloader_drop_last": flag(),
        "data_efficiency": tools.DATA_EFFICIENCY,
        "tensor_parallel": training.TENSOR_PARALLEL,
        "pipeline": training.PIPELINE,
        "expert_parallel": training.EXPERT_PARALLEL,
        "sequence_parallel_size": whole(None, 1),
        "data_parallel_size": whole(None, 1),
        "use_data_before_expert_parallelism": flag(),
        "aio": tools.AIO,
        "compile": tools.COMPILE,
        "hybrid_engine": tools.HYBRID_ENGINE,
        "weight_quantization": tools.WEIGHT_QUANTIZATION,
        "autotuning": tools.AUTOTUNING,
        "flops_profiler": tools.FLOPS_PROFILER,
        "comms_logger": tools.COMMS_LOGGER,
        "timers": tools.TIMERS,
        "tensorboard": tools.TENSORBOARD,
        "wandb": tools.WANDB,
        "csv_monitor": tools.CSV_MONITOR,
        "comet": tools.COMET,
        "steps_per_print": whole(None, 1),
        "wall_clock_breakdown": flag(),
        "memory_breakdown": flag(),
        "dump_state": flag(),
        "disable_python_gc": flag(),
        "vocabulary_size": whole(None, 1),
        "log_level": text(None, "debug", "info", "warning", "error", "critical"),
    }
)


def check(
    deepspeed: Mapping[str, Any],
    *,
    dialect: Dialect = "deepspeed",
    run: Run | None = None,
    model: LlamaConfig | None = None,
    world_size: int | None = None,
    device: str | None = None,
) -> list[Problem]:
    """Everything wrong with a DeepSpeed JSON: the schema first, then the rules on what fits it.

    dialect: "deepspeed" for a plain script, where "auto" is an error; "huggingface" for the
    Trainer, which fills "auto" in; "run" for a JSON that `resolve` will fill in. What is not
    known (`run`, `model`, `world_size`, `device`) leaves the rules that need it silent.
    """
    from ds_llama.config.rules import Context, run_rules

    problems = list(_section(SCHEMA, deepspeed, "", dialect))
    problems += _optimizer_parameters(deepspeed, dialect)
    broken = {problem.key for problem in problems if problem.severity == "error"}
    given = Context(deepspeed)
    meant = {key for problem in problems if (key := _meant(problem)) and not given.has(key)}
    context = Context(
        _without(deepspeed, broken),
        dialect,
        run,
        model,
        world_size,
        device,
        frozenset(broken | meant),
        deepspeed,
    )
    return problems + run_rules(context)


def lookup(path: Sequence[str]) -> Key | Section | None:
    """What the schema has at a path of keys; None for an unknown one."""
    here: Key | Section | None = SCHEMA
    for name in path:
        if not isinstance(here, Section):
            return None
        here = here.keys.get(name) or (Section(free=True) if here.free else None)
    return here


def _section(section: Section, value: Any, path: str, dialect: Dialect) -> Iterator[Problem]:
    # On the command line null takes a section of the file away again.
    if value is None and (section.null or dialect == "run"):
        return
    if not isinstance(value, Mapping):
        message = f"{path or 'the JSON'} is {shown(value)}, not an object"
        remedy = "write an object: { … }"
        if path == "zero_optimization" and isinstance(value, bool):
            remedy = f'write {{"stage": {int(value)}}}'
        yield Problem("wrong-type", "error", path, message, remedy)
        return
    for name, inner in value.items():
        key = f"{path}.{name}" if path else name
        known = section.keys.get(name)
        if known is None:
            if not section.free:
                yield unknown_key(SCHEMA, section, name, key)
        else:
            if known.gone and inner is not None:
                message = f"{name!r} is kept for old files only"
                yield Problem("deprecated-key", "warning", key, message, known.gone)
            if isinstance(known, Section):
                yield from _section(known, inner, key, dialect)
            else:
                yield from _value(known, inner, key, dialect)


def _meant(problem: Problem) -> str | None:
    """The key that a misspelt or misplaced one stood for: it is not known to be absent."""
    *parents, name = problem.key.split(".")
    home, section = moved_to(problem), lookup(parents)
    if problem.code == "misplaced-key" and home is not None:
        return ".".join([*home, name])
    if problem.code not in ("unknown-key", "newer-key") or not isinstance(section, Section):
        return None
    guess = nearest(name, section.keys)
    return ".".join([*parents, guess]) if guess else None


def _value(known: Key, value: Any, key: str, dialect: Dialect) -> Iterator[Problem]:
    if value == "auto" and dialect == "huggingface":
        if key not in FILLED:
            yield _unfilled(known, key)
        return
    takes_text = "str" in known.kind.split("|") and (not known.choices or "auto" in known.choices)
    if value == "auto" and not known.auto and not takes_text:
        if dialect == "deepspeed":
            yield _auto(known, key)
        return
    if value == "auto" and dialect != "deepspeed":
        return
    complaint = known.complaint(value)
    if complaint:
        name = key.rsplit(".", 1)[-1]
        kind = "wrong-type" if ", not " in complaint[0] else "wrong-value"
        yield Problem(kind, "error", key, f"{name} {complaint[0]}", complaint[1])


def _auto(known: Key, key: str) -> Problem:
    default = "a value" if known.default is None else shown(known.default)
    return Problem(
        "auto-value",
        "error",
        key,
        '"auto" is for the Hugging Face Trainer: DeepSpeed itself drops it or stops at it',
        f"write {default}, or check the file as one for the Trainer (--dialect huggingface)",
    )


def _unfilled(known: Key, key: str) -> Problem:
    default = "a value" if known.default in (None, "auto") else shown(known.default)
    return Problem(
        "auto-unfilled",
        "error",
        key,
        'neither the Trainer nor Accelerate fills in "auto" here, and Accelerate stops at it',
        f"write {default}, or leave the key out",
    )


def _optimizer_parameters(deepspeed: Mapping[str, Any], dialect: Dialect) -> list[Problem]:
    """Names and values in the `params` of an optimizer or scheduler that DeepSpeed builds."""
    found: list[Problem] = []
    for name, sections in (
        ("optimizer", training.OPTIMIZERS),
        ("scheduler", training.SCHEDULERS),
    ):
        entry = deepspeed.get(name)
        if not isinstance(entry, Mapping) or not isinstance(entry.get("params"), Mapping):
            continue
        kind = str(entry.get("type"))
        section = sections.get(kind.lower() if name == "optimizer" else kind)
        if section is not None:
            found += _section(section, entry["params"], f"{name}.params", dialect)
    return found


def _without(value: Mapping[str, Any], broken: set[str], path: str = "") -> dict[str, Any]:
    """A copy without the keys in `broken`, so that rules meet only values of the right type."""
    kept: dict[str, Any] = {}
    for name, inner in value.items():
        key = f"{path}{name}"
        if key not in broken:
            nested = isinstance(inner, Mapping)
            kept[name] = _without(inner, broken, f"{key}.") if nested else inner
    return kept

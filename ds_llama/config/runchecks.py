"""What must hold between the sections of a run besides each value's own type."""

from __future__ import annotations

from collections.abc import Iterator

from ds_llama.config.model import LlamaConfig
from ds_llama.config.problems import Problem
from ds_llama.config.run import Run


def check_run(run: Run, model: LlamaConfig | None = None) -> Iterator[Problem]:
    """Contradictions within a run and with its model; keys are paths in the run JSON."""
    yield from _length(run)
    yield from _sequence(run, model)
    yield from _packing(run)
    yield from _mixture(run)
    yield from _batch(run)
    yield from _schedule(run)
    yield from _plateau(run)
    yield from _needs_validation(run)
    yield from _groups(run)
    yield from _optimizers(run)
    yield from _reproducible(run)
    yield from _recompute(run)
    yield from _compiled(run)
    yield from _rollback(run)
    yield from _idle_stability(run)


def _length(run: Run) -> Iterator[Problem]:
    if run.train.steps is not None and run.train.epochs is not None:
        yield Problem(
            "run-length",
            "error",
            "train.epochs",
            f"train.epochs ({run.train.epochs:g}) and train.steps ({run.train.steps}) both say "
            "how long to train",
            "keep one of them",
        )


def _sequence(run: Run, model: LlamaConfig | None) -> Iterator[Problem]:
    given = "sequence_length" in run.data.model_fields_set
    length = run.data.sequence_length
    if given and model is not None and length > model.max_position_embeddings:
        yield Problem(
            "sequence-beyond-model",
            "warning",
            "data.sequence_length",
            f"data.sequence_length ({length}) is beyond the model's max_position_embeddings "
            f"({model.max_position_embeddings})",
            f"take at most {model.max_position_embeddings}, or scale the model's RoPE",
        )


def _packing(run: Run) -> Iterator[Problem]:
    data = run.data
    if data.packing != "windows" and data.attention_mask == "causal":
        yield Problem(
            "packing-across-documents",
            "error",
            "data.attention_mask",
            f"data.packing {data.packing!r} keeps documents apart, and data.attention_mask is "
            "'causal'",
            'remove data.attention_mask, or write "packing": "windows"',
        )
    if data.packing == "windows" and data.truncation != "right":
        yield Problem(
            "truncation-of-windows",
            "error",
            "data.truncation",
            f"data.truncation {data.truncation!r} does nothing where data.packing is 'windows': no "
            "document is shortened",
            'remove it, or write "packing": "best_fit" or "none"',
        )


def _mixture(run: Run) -> Iterator[Problem]:
    data = run.data
    if data.temperature is not None and isinstance(data.train, str):
        yield Problem(
            "temperature-of-one",
            "error",
            "data.temperature",
            f"data.temperature ({data.temperature:g}) weighs corpora by their sizes, and "
            "data.train names one",
            "remove it, or make data.train a list",
        )


def _batch(run: Run) -> Iterator[Problem]:
    total, micro = run.train.global_batch_size, run.train.micro_batch_size
    if total is not None and micro is not None and total % micro:
        choices = [size for size in (total // micro * micro, (total // micro + 1) * micro) if size]
        yield Problem(
            "run-batch",
            "error",
            "train.global_batch_size",
            f"train.global_batch_size ({total}) is not a multiple of train.micro_batch_size "
            f"({micro})",
            f"take {' or '.join(str(size) for size in choices)}",
        )


def _schedule(run: Run) -> Iterator[Problem]:
    section = run.optimizer
    if section is None:
        return
    if section.decay_steps is not None and section.schedule != "wsd":
        yield Problem(
            "schedule-decay-steps",
            "error",
            "optimizer.decay_steps",
            f"decay_steps ({section.decay_steps}) does nothing in the schedule "
            f"{section.schedule!r}",
            'remove it, or write "schedule": "wsd"',
        )
    used = section.warmup_steps + (section.decay_steps or 0)
    if run.train.steps is not None and used > run.train.steps:
        names = "warmup_steps" if section.decay_steps is None else "warmup_steps + decay_steps"
        yield Problem(
            "schedule-too-long",
            "warning",
            "optimizer.warmup_steps",
            f"{names} ({used}) is more than train.steps ({run.train.steps})",
            f"train longer, or make it at most {run.train.steps}, unless this is a trial",
        )


def _plateau(run: Run) -> Iterator[Problem]:
    section = run.optimizer
    if section is not None and section.plateau is not None and section.schedule != "plateau":
        yield Problem(
            "schedule-plateau",
            "error",
            "optimizer.plateau",
            f"plateau does nothing in the schedule {section.schedule!r}",
            'remove it, or write "schedule": "plateau"',
        )


def _needs_validation(run: Run) -> Iterator[Problem]:
    """What looks at the validation loss, and whether there is one when it looks."""
    repeated = {
        "optimizer.schedule": run.optimizer is not None and run.optimizer.schedule == "plateau",
        "evaluation.early_stopping": run.evaluation.early_stopping is not None,
    }
    once = {"ema.evaluate": run.ema is not None and run.ema.evaluate}
    needed = [
        ("data.validation", run.data.validation, {**repeated, **once}, '"shards/validation"'),
        ("evaluation.every_steps", run.evaluation.every_steps, repeated, "100"),
    ]
    for missing, value, readers, example in needed:
        for key in (key for key, used in readers.items() if used and value is None):
            what = "the plateau schedule" if key == "optimizer.schedule" else key
            yield Problem(
                "needs-validation",
                "error",
                key,
                f"{what} looks at the validation loss, and {missing} is not given",
                f"write {missing}, for instance {example}",
            )


def _reproducible(run: Run) -> Iterator[Problem]:
    """What zero/exact.py has no exact form of."""
    section = run.optimizer
    if section is None or not run.train.reproducible:
        return
    if section.type != "AdamW":
        yield _inexact("type", f"{section.type} has not been shown to give equal bits", "AdamW")
    if section.clips_by_group:
        why = "the norms of groups are summed in the order of the ranks' partitions"
        yield _inexact("groups", why, "one norm (gradient_clipping in the DeepSpeed JSON)")


def _inexact(key: str, why: str, instead: str) -> Problem:
    return Problem(
        "run-not-reproducible",
        "error",
        f"optimizer.{key}",
        f"train.reproducible does not go with this optimizer.{key}: {why}",
        f"take {instead}, or remove train.reproducible",
    )


def _recompute(run: Run) -> Iterator[Problem]:
    what, section = run.train.recompute, "activation_checkpointing"
    if what is None:
        return
    if section in run.deepspeed and run.deepspeed[section] is None:
        yield Problem(
            "recompute-without-section",
            "error",
            "train.recompute",
            f"train.recompute says what is recomputed, and {section} in the DeepSpeed JSON is null",
            "make train.recompute null too, or remove the null",
        )


def _compiled(run: Run) -> Iterator[Problem]:
    """zero/compiling.py: a block is compiled whole."""
    train = run.train
    if not train.compile:
        return
    part = train.recompute.part if train.recompute is not None else "block"
    others = {
        f"train.recompute.part {part!r}": (part != "block", "it would break each block's graph"),
        "train.reproducible": (train.reproducible, "it has not been shown to give equal bits"),
        "documents that are kept apart": (
            run.data.block_causal,
            "each batch has documents of other lengths, and would be compiled anew",
        ),
    }
    for name, (used, why) in others.items():
        if used:
            yield Problem(
                "run-not-compiled",
                "error",
                "train.compile",
                f"train.compile does not go with {name}: {why}",
                f"remove one of the two{', or recompute blocks' if 'recompute' in name else ''}",
            )


def _rollback(run: Run) -> Iterator[Problem]:
    section = run.stability
    actions = {"stability.nonfinite": section.nonfinite}
    if section.spike is not None:
        actions["stability.spike.then"] = section.spike.then
    for key, action in actions.items():
        if action == "rollback" and run.checkpoint.every_steps is None:
            yield Problem(
                "rollback-without-checkpoints",
                "error",
                key,
                f"{key} says to roll back, and checkpoint.every_steps is not given: there would be "
                "nothing to go back to",
                "write checkpoint.every_steps, for instance 100",
            )


def _idle_stability(run: Run) -> Iterator[Problem]:
    """What is asked for and cannot happen in this run; a resume may make it longer."""
    section, steps = run.stability, run.train.steps
    if section.spike is not None and steps is not None and section.spike.window >= steps:
        yield Problem(
            "spike-window-too-long",
            "warning",
            "stability.spike.window",
            f"no loss is judged before {section.spike.window} updates are made, and train.steps is "
            f"{steps}",
            "make the window smaller, or train longer",
        )
    every = run.checkpoint.every_steps
    back = "rollback" in (section.nonfinite, section.spike and section.spike.then)
    if back and every is not None and steps is not None and every >= steps:
        yield Problem(
            "rollback-too-late",
            "warning",
            "checkpoint.every_steps",
            f"the first checkpoint that a rollback could go back to is that of step {every}, and "
            f"train.steps is {steps}",
            "save more often",
        )
    given = "nonfinite" in section.model_fields_set
    bf16 = run.deepspeed.get("bf16")
    if given and isinstance(bf16, dict) and bf16.get("check_grad_overflow") is False:
        yield Problem(
            "nonfinite-unchecked",
            "warning",
            "stability.nonfinite",
            "bf16.check_grad_overflow is false: a gradient that is not finite is put into the "
            "weights, and seen in the next loss",
            "remove bf16.check_grad_overflow",
        )


def _groups(run: Run) -> Iterator[Problem]:
    section = run.optimizer
    for index, row in enumerate(section.groups if section is not None else ()):
        if section is not None and row.lr and not section.lr:
            yield Problem(
                "group-rate",
                "error",
                f"optimizer.groups.{index}.lr",
                "a row's lr is a ratio of the run's under the schedule, and that is 0",
                "give optimizer.lr the largest rate, and the others rows with lr 0",
            )
    if section is not None and section.clips_by_group and section.clip_value is not None:
        yield Problem(
            "two-clippings",
            "error",
            "optimizer.clip_value",
            "clip_value and the gradient_clipping of groups: one would clip the other's result",
            "keep one of them",
        )


def _optimizers(run: Run) -> Iterator[Problem]:
    if run.deepspeed.get("scheduler") is not None and run.deepspeed.get("optimizer") is None:
        yield Problem(
            "scheduler-alone",
            "error",
            "deepspeed.scheduler",
            "the DeepSpeed JSON has a scheduler and no optimizer that it could drive",
            "write the optimizer there too, or remove the scheduler and write the run's "
            "optimizer.schedule",
        )
    for name in ("optimizer", "scheduler"):
        alone = name == "scheduler" and run.deepspeed.get("optimizer") is None
        if run.optimizer is not None and run.deepspeed.get(name) is not None and not alone:
            yield Problem(
                f"two-{name}s",
                "error",
                "optimizer",
                f"optimizer in the run and {name} in its DeepSpeed JSON: one would silently win",
                f"remove the run's section, or {name!r} from the DeepSpeed JSON",
            )

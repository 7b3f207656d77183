"""Fill a DeepSpeed JSON: batch, "auto", precision, buckets, and every default that acts."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from ds_llama.config import buckets
from ds_llama.config.batch import Batch
from ds_llama.config.deepspeed import BATCH_KEYS, SCHEMA
from ds_llama.config.keys import Key, Section
from ds_llama.config.model import LlamaConfig
from ds_llama.config.optimizer import AdamW
from ds_llama.config.problems import Problem
from ds_llama.config.run import Run

# Sections whose defaults are written out when the JSON has them; the others are left as they are.
_FILLED = (
    *("zero_optimization", "bf16", "fp16", "torch_autocast", "activation_checkpointing"),
    *("aio", "flops_profiler", "comms_logger", "timers"),
)


class Filling:
    """One filling. `problems` holds each "auto" that nothing here can decide."""

    def __init__(
        self, run: Run, model: LlamaConfig, batch: Batch, world_size: int, device: str
    ) -> None:
        self.run, self.model, self.batch = run, model, batch
        self.world_size, self.device = world_size, device
        self.problems: list[Problem] = []

    def deepspeed(self) -> dict[str, Any]:
        """The effective JSON: what DeepSpeed is given, and what is written with the run."""
        tree = one_spelling(self.run.deepspeed)
        zero = tree.setdefault("zero_optimization", {})
        if zero.get("stage") in (None, "auto"):
            zero["stage"] = 0
        self._precision(tree)
        self._optimizer(tree)
        tree = self._without_auto(SCHEMA, tree, "")
        self._zero(tree)
        self._accumulate_in_fp32(tree)
        if self.run.train.recompute is not None:
            tree.setdefault("activation_checkpointing", {})
        sizes = (self.batch.global_size, self.batch.micro_size, self.batch.accumulation_steps)
        tree.update(zip(BATCH_KEYS, sizes, strict=True))
        tree.setdefault("zero_allow_untested_optimizer", True)
        self._own_optimizer(tree)
        return self._with_defaults(tree)

    def _precision(self, tree: dict[str, Any]) -> None:
        """bf16 where both are left open, as on every device of the last years."""
        bf16, fp16 = tree.get("bf16"), tree.get("fp16")
        fp16_on = isinstance(fp16, dict) and fp16.get("enabled") is True
        if isinstance(bf16, dict) and bf16.get("enabled") == "auto":
            bf16["enabled"] = tree["zero_optimization"]["stage"] > 0 and not fp16_on
        if isinstance(fp16, dict) and fp16.get("enabled") == "auto":
            if bf16 is None:
                self._refuse("fp16.enabled", "nothing says which precision to train in", "true")
            fp16["enabled"] = False
        autocast = tree.get("torch_autocast")
        if isinstance(autocast, dict) and autocast.get("dtype") in (None, "auto"):
            autocast["dtype"] = "bfloat16"

    def _optimizer(self, tree: dict[str, Any]) -> None:
        """ "auto" in optimizer and scheduler: this package's own defaults for training LLaMA."""
        ours = AdamW()
        values: dict[str, Any] = {
            "lr": ours.lr,
            "betas": list(ours.betas),
            "eps": ours.eps,
            "weight_decay": ours.weight_decay,
        }
        params = _params(tree, "optimizer")
        params.update({name: values[name] for name in values if params.get(name) == "auto"})
        schedule = _params(tree, "scheduler")
        values = {
            "warmup_min_lr": 0.0,
            "warmup_max_lr": params.get("lr", ours.lr),
            "total_num_steps": self.run.train.steps,
        }
        for name in [name for name in values if schedule.get(name) == "auto"]:
            if values[name] is not None:
                schedule[name] = values[name]
        for section, left in (("optimizer", params), ("scheduler", schedule)):
            for name in [name for name in left if left[name] == "auto"]:
                self._refuse(f"{section}.params.{name}", "the run does not say it", "a number")

    def _without_auto(self, section: Section, tree: Mapping[str, Any], path: str) -> dict[str, Any]:
        """Keys whose "auto" has a default are dropped, for the default to be filled in later."""
        kept: dict[str, Any] = {}
        for name, value in tree.items():
            known = section.keys.get(name)
            if isinstance(known, Section) and isinstance(value, Mapping):
                kept[name] = self._without_auto(known, value, f"{path}{name}.")
            elif value != "auto" or not isinstance(known, Key) or known.auto:
                kept[name] = value
        return kept

    def _zero(self, tree: dict[str, Any]) -> None:
        zero = tree["zero_optimization"]
        sizes: dict[str, Any] = dict(buckets.for_model(self.model, zero["stage"]))
        if zero["stage"] == 3:
            sizes |= buckets.for_offload(self.model, zero, self.world_size)
        for name, size in sizes.items():
            zero[name] = size | zero[name] if isinstance(size, dict) else zero.get(name, size)
        if zero["stage"] > 0 and zero.get("overlap_comm") is None:
            zero["overlap_comm"] = zero["stage"] == 3
        for name in ("offload_optimizer", "offload_param"):
            offload = zero.get(name)
            if offload is None:
                zero.pop(name, None)
            elif self.device != "cuda" and offload.get("device", "none") != "none":
                # Pinning compiles an op on CPU (minutes), and pins nothing that a GPU would read.
                offload.setdefault("pin_memory", False)

    def _accumulate_in_fp32(self, tree: dict[str, Any]) -> None:
        """Half precision, several micro-batches: add them up and reduce them in fp32.

        DeepSpeed's default adds in half precision, and the stages then differ among themselves.
        Muon's momentum has the type that is added in (or, at stage 3, communicated in).
        The price is 2 bytes a parameter between micro-batches, on every rank at stage 1 (where
        the whole buffer, 4 bytes a parameter, also stays between steps in bf16), divided by the
        world at 2 and 3, and 2 bytes an element of a reduce bucket. Writing grad_accum_dtype opts
        out.
        """
        half = next((s for s in ("bf16", "fp16") if tree.get(s, {}).get("enabled")), None)
        exact = self.run.train.reproducible
        muon = self.run.optimizer is not None and self.run.optimizer.type == "Muon"
        if half is None or (self.batch.accumulation_steps == 1 and not (exact or muon)):
            return
        if tree["zero_optimization"]["stage"] == 0 or tree[half].get(
            f"{half}_master_weights_and_grads"
        ):
            return
        chosen = tree.setdefault("data_types", {}).setdefault("grad_accum_dtype", "fp32")
        if muon or str(chosen).removeprefix("torch.") in ("fp32", "float32", "float"):
            tree.setdefault("communication_data_type", "fp32")

    def _own_optimizer(self, tree: dict[str, Any]) -> None:
        """What the run's own optimizer needs DeepSpeed to leave alone."""
        section = self.run.optimizer
        if section is None:
            return
        if section.type != "AdamW" or self.run.train.reproducible:
            # An offloaded optimizer is torch's own on the host, which DeepSpeed refuses otherwise.
            tree.setdefault("zero_force_ds_cpu_optimizer", False)
        if section.clips_itself:
            tree.setdefault("gradient_clipping", 0.0)
        if section.type == "Muon" and tree["zero_optimization"]["stage"] >= 2:
            tree["zero_optimization"].setdefault("reduce_scatter", False)  # rules/run_optimizer.py

    def _with_defaults(self, tree: dict[str, Any]) -> dict[str, Any]:
        stage = tree["zero_optimization"]["stage"]
        missing = {name: value for name, value in SCHEMA.defaults().items() if value is not None}
        filled = {**missing, **tree, "steps_per_print": tree.get("steps_per_print")}
        for name in _FILLED:
            section = SCHEMA.keys[name]
            if isinstance(section, Section) and isinstance(filled.get(name), dict):
                filled[name] = with_defaults(section, filled[name], stage)
        return {name: filled[name] for name in SCHEMA.keys if name in filled}

    def _refuse(self, key: str, why: str, write: str) -> None:
        message = f'"auto" cannot be resolved: {why}'
        self.problems.append(Problem("auto-unresolved", "error", key, message, f"write {write}"))


def one_spelling(deepspeed: Mapping[str, Any]) -> dict[str, Any]:
    """A copy with every key under the name that DeepSpeed documents."""
    tree = {
        name: copy.deepcopy(value)
        for name, value in deepspeed.items()
        if value is not None or not isinstance(SCHEMA.keys.get(name), Section)
    }
    if "bfloat16" in tree:
        tree.setdefault("bf16", tree.pop("bfloat16"))
    for name, section in SCHEMA.keys.items():
        if isinstance(section, Section) and isinstance(tree.get(name), dict):
            inner = tree[name]
            for short, key in section.keys.items():
                if isinstance(key, Key) and key.same_as and short in inner:
                    inner.setdefault(key.same_as, inner.pop(short))
    return tree


def with_defaults(section: Section, value: Mapping[str, Any], stage: int) -> dict[str, Any]:
    """`value` with every default of `section` that acts at `stage`, in the schema's order."""
    result: dict[str, Any] = {}
    for name, key in section.keys.items():
        if isinstance(key, Section):
            if isinstance(value.get(name), Mapping):
                result[name] = with_defaults(key, value[name], stage)
        elif name in value:
            result[name] = value[name]
        elif _acts(key, stage):
            result[name] = copy.copy(key.default)
    return {**result, **{name: value[name] for name in value if name not in result}}


def _acts(key: Key, stage: int) -> bool:
    named = not key.same_as and not key.gone
    return named and key.default is not None and (key.stages is None or stage in key.stages)


def _params(tree: dict[str, Any], name: str) -> dict[str, Any]:
    section = tree.get(name)
    params = section.get("params") if isinstance(section, dict) else None
    return params if isinstance(params, dict) else {}

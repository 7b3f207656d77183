"""What of a resolved run decides about memory, in bytes and elements."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

from ds_llama.config.model import LlamaConfig
from ds_llama.config.resolve import Resolved
from ds_llama.config.rules import Context
from ds_llama.config.run import RecomputeConfig
from ds_llama.planner import gathers
from ds_llama.planner.traffic import element_bytes, limits

# Bytes of an optimizer's moments for each fp32 element of the masters.
_MOMENTS = {"SGD": 4, "Lion": 4, "Adagrad": 4}

# What holds or saves memory of its own that is not played; keys of the DeepSpeed JSON.
_UNPLAYED = (
    *("zero_optimization.zenflow", "zero_optimization.offload_optimizer.super_offload"),
    *("zero_optimization.zero_quantized_weights", "zero_optimization.zero_quantized_gradients"),
    *("zero_optimization.zero_quantized_nontrainable_weights", "compile.deepcompile"),
    "torch_autocast.lower_precision_safe_modules",  # sent in half precision, out of another bucket
)


@dataclass(frozen=True)
class Weight:
    """One parameter, or a matrix with its bias. `group`: 0 for decayed weights, 1 for others."""

    name: str
    elements: int
    group: int


@dataclass(frozen=True)
class Settings:
    """Read off a `Resolved`, so that the rooms that use it read plain names."""

    resolved: Resolved

    @property
    def model(self) -> LlamaConfig:
        return self.resolved.model

    @property
    def stage(self) -> int:
        return self.resolved.stage

    @property
    def on_cpu(self) -> bool:
        """Whether host and device are one memory."""
        return self.resolved.device == "cpu"

    @cached_property
    def zero(self) -> dict[str, Any]:
        return dict(self.resolved.deepspeed["zero_optimization"])

    @cached_property
    def unplayed(self) -> tuple[str, ...]:
        """What the run has that a plan's memory leaves out."""
        context = Context(self.resolved.deepspeed)
        found = [key for key in _UNPLAYED if context.get(key)]
        if self.resolved.run.train.compile and not self.leaves:
            found.append("train.compile under torch_autocast")
        if self.muon:  # gathers whole gradients and momenta to orthogonalise them (stage3.py:2640)
            found.append("Muon's update")
        return tuple(found)

    @cached_property
    def leaves(self) -> bool:
        """Whether blocks are compiled and played whole (planner/compiled.py)."""
        return self.resolved.run.train.compile and self.product_width == self.width

    @cached_property
    def muon(self) -> int:
        """Elements of this rank's part of what Muon updates, the matrices of the blocks; it keeps
        one moment of them."""
        section = self.resolved.run.optimizer
        if section is None or section.type != "Muon":
            return 0
        vectors = {"embed", "head"}
        matrices = [w for w in self.weights if w.group == 0 and w.name not in vectors]
        parts = self.ranks if self.stage else 1
        return sum(padded(weight.elements, parts) // parts for weight in matrices)

    @cached_property
    def ranks(self) -> int:
        """Ranks that share the states."""
        sharing = self.resolved.deepspeed.get("tensor_parallel", {}).get("autotp_size", 1)
        return max(1, self.resolved.world_size // max(1, int(sharing or 1)))

    @cached_property
    def width(self) -> int:
        """Bytes of an element of weights and activations."""
        return element_bytes(self.resolved.dtype) or 4

    @cached_property
    def tokens(self) -> int:
        """Tokens of a micro-batch on one rank."""
        return self.resolved.micro_batch_size * self.resolved.run.data.sequence_length

    @cached_property
    def recompute(self) -> RecomputeConfig | None:
        if "activation_checkpointing" not in self.resolved.deepspeed:
            return None
        return self.resolved.run.train.recompute

    @cached_property
    def weights(self) -> tuple[Weight, ...]:
        """Every weight once, in the order of `named_parameters`."""
        return _weights(tuple(gathers.weights(self.model).items()))

    @cached_property
    def groups(self) -> tuple[tuple[Weight, ...], ...]:
        """Weights by optimizer group, decayed ones first, as `zero.optimizer` orders them."""
        both = (tuple(w for w in self.weights if w.group == index) for index in (0, 1))
        return tuple(group for group in both if group)

    @cached_property
    def partitioned(self) -> tuple[tuple[Weight, ...], ...]:
        """Groups as stages 1 and 2 lay them out: dealt to the ranks one by one, or in order."""
        if not self.zero.get("round_robin_gradients"):
            return self.groups
        ranks = range(self.ranks)  # stage_1_and_2.py:901
        return tuple(tuple(w for r in ranks for w in g[r :: self.ranks]) for g in self.groups)

    @cached_property
    def largest(self) -> int:
        """Elements of the largest weight."""
        return max(weight.elements for weight in self.weights)

    # --- dtypes ----------------------------------------------------------------------------------

    @cached_property
    def autocast(self) -> bool:
        """Whether fp32 weights are multiplied in half precision (`torch_autocast`)."""
        return bool((self.resolved.deepspeed.get("torch_autocast") or {}).get("enabled"))

    @cached_property
    def multiplies_in(self) -> str:
        """The dtype of matrix products in the forward pass: torch's name for it."""
        if not self.autocast:
            return self.resolved.dtype
        name = str(self.resolved.deepspeed["torch_autocast"]["dtype"]).removeprefix("torch.")
        if element_bytes(name) == 4:
            return "float32"
        return "bfloat16" if name.startswith("b") else "float16"

    @cached_property
    def product_width(self) -> int:
        """Bytes of an element of what those take and give."""
        return _bytes(self.multiplies_in, self.width)

    @cached_property
    def accumulation_width(self) -> int:
        """Bytes in which micro-batches' gradients are summed (`data_types.grad_accum_dtype`)."""
        section = self.resolved.deepspeed.get("data_types") or {}
        return _bytes(section.get("grad_accum_dtype"), self.width)

    @cached_property
    def communication_width(self) -> int:
        """Bytes in which gradients are reduced (`communication_data_type`, which autocast takes no
        notice of: base_optimizer.py:393)."""
        if self.autocast:
            return self.width
        return _bytes(self.resolved.deepspeed.get("communication_data_type"), self.width)

    @cached_property
    def master_width(self) -> int:
        """Bytes of a master weight: fp32, or half of it with `bf16_master_weights_and_grads`."""
        return 2 if self._low_master else 4

    @cached_property
    def moment_width(self) -> int:
        """Bytes of all the moments of one master element."""
        run = self.resolved.run
        section = run.optimizer
        kind = section.type if section is not None else "AdamW"
        width = _MOMENTS.get(kind, 8)
        if kind == "SGD" and not getattr(section, "momentum", 0.0):
            width = 0
        half = self.resolved.deepspeed.get("bf16") or {}
        if half.get("bf16_optimizer_states") or (self._low_master and not self.offloaded):
            width //= 2
        return width + (self.master_width if run.ema is not None else 0)

    @property
    def _low_master(self) -> bool:
        return any(
            (self.resolved.deepspeed.get(name) or {}).get(f"{name}_master_weights_and_grads")
            for name in ("bf16", "fp16")
        )

    # --- buffers and offload ---------------------------------------------------------------------

    @cached_property
    def bucket(self) -> int:
        """Elements of a reduce bucket."""
        return int(self.zero.get("reduce_bucket_size", 500_000_000))

    @cached_property
    def contiguous(self) -> bool:
        """Whether gradients are copied into the reduce bucket, and not just kept for it."""
        return bool(self.zero.get("contiguous_gradients", True)) or (
            self.stage < 3 and self.offloaded  # stage_1_and_2.py:300
        )

    @cached_property
    def gathered(self) -> bool:
        """Whether weights are gathered: one rank's slice is the weight, if it is here."""
        alone = self.ranks == 1 and (self.on_cpu or self.resolved.offload_param is None)
        return self.stage == 3 and not alone

    @cached_property
    def persistent(self) -> int:
        """Elements of the weights that stay whole between uses (parameter_offload.py:317)."""
        if not self.gathered:
            return 0
        sizes = gathers.weights(self.model)
        return sum(sizes[name] for name in gathers.persistent(sizes, limits(self.zero)))

    @cached_property
    def overlap(self) -> bool:
        return bool(self.zero.get("overlap_comm"))

    @property
    def offloaded(self) -> bool:
        return self.resolved.offload_optimizer is not None

    @cached_property
    def least_swap_bytes(self) -> int:
        """Bytes below which nothing goes to NVMe (swap_tensor/partitioned_param_swapper.py:97)."""
        return max(2**20, int(self._aio.get("block_size", 2**20)))

    @cached_property
    def swap_block_bytes(self) -> int:
        """What is swapped takes a multiple of this (swap_tensor/optimizer_utils.py:188)."""
        return 1024 * int(self._aio.get("intra_op_parallelism", 1))

    @property
    def _aio(self) -> dict[str, Any]:
        return self.resolved.deepspeed.get("aio") or {}

    def swapped(self, size: int) -> int:
        """Bytes of a buffer that `size` bytes are swapped through."""
        return padded(size, self.swap_block_bytes)

    def slice(self, weight: Weight) -> int:
        """Elements of stage 3's part of a weight, as long on every rank."""
        return padded(weight.elements, self.ranks) // self.ranks

    @cached_property
    def copies(self) -> dict[str, int]:
        """Elements of each weight that hpZ keeps within the node, if it is on
        (partition_parameters.py:1912)."""
        size = int(self.zero.get("zero_hpz_partition_size", 1)) if self.stage == 3 else 1
        if size <= 1:
            return {}
        node = min(size, self.ranks)  # utils/groups.py:942
        return {w.name: padded(w.elements, self.ranks) // node for w in self.weights}

    def pinned(self, name: str) -> bool:
        """Whether what `name` ("optimizer" or "param") offloads is page-locked."""
        section = self.zero.get(f"offload_{name}") or {}
        return bool(section.get("pin_memory", True))


@lru_cache(maxsize=32)
def _weights(sizes: tuple[tuple[str, int], ...]) -> tuple[Weight, ...]:
    return tuple(Weight(name, size, int(name.endswith("norm"))) for name, size in sizes)


def _bytes(dtype: str | None, default: int) -> int:
    return element_bytes(dtype) or default


def padded(elements: int, ranks: int) -> int:
    """The next multiple of `ranks`."""
    return -(-elements // ranks) * ranks

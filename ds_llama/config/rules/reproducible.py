"""What `train.reproducible` cannot promise equal bits for, each by name."""

from __future__ import annotations

from collections.abc import Iterator

from ds_llama.config.problems import Problem
from ds_llama.config.rules import Context

_ZERO = "zero_optimization"
_OFF = (False, None)
_FP32 = ("fp32", "float32", "float", "torch.float32")
_UNTRIED = "it has not been shown to give equal bits"
_PARTIAL = "each rank sums a part of a product, in parts that depend on its group"
# Key, the values that are fine, why no other is.
_REFUSED = (
    ("fp16.enabled", _OFF, "its loss scale changes what is rounded"),
    ("torch_autocast.enabled", _OFF, _UNTRIED),
    ("bf16.bf16_master_weights_and_grads", _OFF, "gradients would be summed in bf16"),
    ("communication_data_type", (None, *_FP32), "gradients are summed exactly in fp32 only"),
    ("data_types.grad_accum_dtype", (None, *_FP32), "gradients are summed exactly in fp32 only"),
    ("prescale_gradients", _OFF, "gradients would be divided before they are summed"),
    ("gradient_predivide_factor", (1.0,), "gradients would be rounded by the division"),
    ("compile.deepcompile", _OFF, "every stage and world size gets kernels of its own"),
    ("tensor_parallel.autotp_size", (0, 1), _PARTIAL),
    ("sequence_parallel_size", (None, 0, 1), _PARTIAL),
    ("expert_parallel.enabled", _OFF, _UNTRIED),
    (f"{_ZERO}.zenflow", _OFF, "it updates weights by gradients of other steps"),
    (f"{_ZERO}.offload_optimizer.super_offload", _OFF, "it has an Adam of its own"),
    (f"{_ZERO}.offload_optimizer.ratio", (1.0,), "two Adams would share the update"),
    (f"{_ZERO}.zero_quantized_gradients", _OFF, "quantised gradients are not summed exactly"),
    (f"{_ZERO}.zero_quantized_weights", _OFF, "the blocks of quantisation depend on the world"),
    (f"{_ZERO}.zero_hpz_partition_size", (0, 1), _UNTRIED),
    ("optimizer", _OFF, "its arithmetic depends on where a rank's partition ends"),
)


def reproducible(context: Context) -> Iterator[Problem]:
    """zero/exact.py: what makes the sums exact, and what else the bits depend on."""
    if context.run is None or not context.run.train.reproducible:
        return
    for key, fine, why in _REFUSED:
        if context.get(key, fine[0]) not in fine:
            yield _refused(key, why)
    for name in ("offload_optimizer", "offload_param"):
        if context.offload(name) == "nvme":
            yield _refused(f"{_ZERO}.{name}.device", "gradients on NVMe cannot be rescaled", "cpu")
    size = context.world_size
    if size is not None and size & (size - 1):
        yield Problem(
            "not-reproducible",
            "error",
            "",
            f"train.reproducible needs a power of two of ranks: a division by {size} rounds",
            f"take {1 << size.bit_length() - 1} or {1 << size.bit_length()} ranks, or remove "
            "train.reproducible from the run",
        )


def _refused(key: str, why: str, instead: str | None = None) -> Problem:
    """`instead`: a value to write in the place of the one that is refused."""
    mend = "remove it" if instead is None else f'write "{instead}"'
    if key == "optimizer":
        mend = "write the run's optimizer section instead"
    return Problem(
        "not-reproducible",
        "error",
        key,
        f"train.reproducible does not go with {key.removeprefix(_ZERO + '.')}: {why}",
        f"{mend}, or remove train.reproducible from the run",
    )

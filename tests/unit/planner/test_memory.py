"""What the plan's memory must be whatever the run: whole, monotone, the states of the paper."""

from __future__ import annotations

import itertools
import time
from dataclasses import asdict, replace
from operator import ne
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ds_llama.config import load_run
from ds_llama.config.resolve import resolve
from ds_llama.planner.ledger import Ledger
from ds_llama.planner.memory import Memory, memory
from ds_llama.planner.paper import Sharded, model_states
from ds_llama.planner.passes import Passes
from ds_llama.planner.settings import Settings
from ds_llama.planner.terms import Terms
from ds_llama.planner.walk import Part

PHASES = ["construct", "initialise", "forward", "backward", "step"]
NAMES = st.sampled_from(
    (
        *("zero0", "zero1", "zero1_offload", "zero2", "zero2_offload", "zero2_fp16"),
        *("zero2_bf16_states", "zero3", "zero3_offload_optimizer", "zero3_offload"),
        *("zero3_twinflow", "zero3_hpz", "zero3_nvme", "zero3_nvme_optimizer"),
    )
)
SHAPES = st.fixed_dictionaries(
    {
        "hidden_size": st.sampled_from((64, 256, 1024)),
        "intermediate_size": st.sampled_from((96, 512, 4096)),
        "num_hidden_layers": st.integers(1, 5),
        "num_attention_heads": st.sampled_from((4, 8)),
        "num_key_value_heads": st.sampled_from((1, 2, 4)),
        "vocab_size": st.sampled_from((256, 5000, 32000)),
        "tie_word_embeddings": st.booleans(),
    }
)


def plan(
    name: str,
    model: dict[str, Any],
    *overrides: str,
    world: int = 4,
    sequence: int = 256,
    micro_batch: int = 1,
    accumulation: int = 1,
    recompute: str | None = None,
    device_memory: int | None = None,
) -> Memory:
    train: dict[str, Any] = {
        "micro_batch_size": micro_batch,
        "global_batch_size": micro_batch * accumulation * world,
    }
    if recompute:
        train["recompute"] = {"part": recompute}
    tree = {
        "model": {"max_position_embeddings": 2**20, **model},
        "data": {"train": "unused", "sequence_length": sequence},
        "train": train,
        "deepspeed": name,
    }
    return memory(resolve(load_run(tree, *overrides), world), device_memory)


@settings(deadline=None, max_examples=40)
@given(
    name=NAMES,
    model=SHAPES,
    world=st.sampled_from((1, 2, 8, 64)),
    accumulation=st.sampled_from((1, 3)),
    recompute=st.sampled_from((None, "block", "attention", "mlp")),
)
def test_terms_are_whole_and_sum_up(
    name: str, model: dict[str, Any], world: int, accumulation: int, recompute: str | None
) -> None:
    world = 8 * world if name == "zero3_hpz" else world
    found = plan(name, model, world=world, accumulation=accumulation, recompute=recompute)
    assert list(found.phases) == PHASES
    for phase in found.phases.values():
        for span in (phase.device, phase.host, phase.total):
            for terms in (span.now, span.peak):
                values = asdict(terms).values()
                assert all(isinstance(value, int) and value >= 0 for value in values), phase
                assert terms.total == sum(values)
            assert span.now.total <= span.peak.total
    peaks = [phase.device.peak.total for phase in found.phases.values()]
    assert found.device_peak.total == max(peaks)
    assert found.phases[found.peak_phase].device.peak == found.device_peak
    assert found.device_steady == found.phases["step"].device.now
    assert found.device_steady.activations == found.device_steady.logits == 0
    assert found.host_peak_bytes >= found.phases["step"].host.now.total >= 0
    assert found.total_peak_bytes <= found.device_peak.total + found.host_peak_bytes
    assert found.host_pinned_bytes <= found.host_peak_bytes


@settings(deadline=None, max_examples=15)
@given(name=NAMES, model=SHAPES, recompute=st.sampled_from((None, "block")))
def test_more_tokens_never_take_less(
    name: str, model: dict[str, Any], recompute: str | None
) -> None:
    world = 16 if name == "zero3_hpz" else 4
    peaks = [
        plan(name, model, world=world, recompute=recompute, micro_batch=size).device_peak.total
        for size in (1, 2, 4)
    ]
    assert peaks == sorted(peaks)
    peaks = [
        plan(name, model, world=world, recompute=recompute, sequence=size).device_peak.total
        for size in (128, 300, 1024)
    ]
    assert peaks == sorted(peaks)


# NVMe takes nothing below 1 MiB: what gets as small as that comes back to the host.
GROWING = NAMES.filter(lambda name: name not in ("zero3_hpz", "zero3_nvme", "zero3_nvme_optimizer"))


@settings(deadline=None, max_examples=20)
@given(name=GROWING, model=SHAPES)
def test_states_never_grow_with_the_world(name: str, model: dict[str, Any]) -> None:
    def states(terms: Terms) -> int:
        return terms.master + terms.optimizer + terms.parameters

    found = [plan(name, model, world=world) for world in (1, 2, 8, 64)]
    for place in ("device", "host"):
        sizes = [states(getattr(each.phases["step"], place).now) for each in found]
        slack = 2**16  # padding, which grows with the world by some elements a weight
        assert all(b <= a + slack for a, b in itertools.pairwise(sizes)), place


@pytest.mark.parametrize(
    ("name", "sharded"), [("zero1", "os"), ("zero2", "os+g"), ("zero3", "os+g+p")]
)
def test_states_are_the_papers(name: str, sharded: Sharded) -> None:
    """Weights, masters and moments as the paper counts them; gradients where they last."""
    model = {"preset": "llama-2-7b", "num_hidden_layers": 4}
    found = plan(name, model, world=64).phases["step"].device.now
    count = Settings(resolve(load_run({**_TREE, "model": model}), 1)).model.num_parameters
    expected = model_states(count, 64, sharded)
    expected -= 2 * count / (1 if name == "zero1" else 64)  # gradients
    assert found.parameters + found.master + found.optimizer == pytest.approx(expected, rel=1e-3)


_TREE: dict[str, Any] = {
    "data": {"train": "unused"},
    "train": {"micro_batch_size": 1},
    "deepspeed": "zero2",
}


def test_an_offload_moves_states_to_the_host() -> None:
    model = {"preset": "llama-2-7b", "num_hidden_layers": 4}
    here, there = plan("zero2", model), plan("zero2_offload", model)
    assert there.device_steady.master == there.device_steady.optimizer == 0
    host = there.phases["step"].host.now
    assert host.master == here.device_steady.master
    assert host.optimizer == here.device_steady.optimizer
    assert there.host_pinned_bytes > host.master
    nvme = plan("zero3_nvme", model, "deepspeed.zero_optimization.offload_param.max_in_cpu=0")
    assert nvme.nvme_bytes > 0 == here.nvme_bytes
    assert nvme.phases["step"].host.now.optimizer < host.optimizer / 100


def test_weights_below_the_threshold_stay_whole() -> None:
    model = {"preset": "llama-3-8b", "num_hidden_layers": 2}
    key = "deepspeed.zero_optimization.stage3_param_persistence_threshold"
    some, more = (plan("zero3", model, f"{key}={limit}", world=8) for limit in (0, 4096 * 1024))
    kept = 2 * 2 * 4096 * 1024 + 5 * 4096  # keys and values of both layers, and the norms
    grown = more.device_steady.parameters - some.device_steady.parameters
    assert grown == 2 * kept


def test_muon_keeps_one_moment_of_the_blocks_matrices() -> None:
    model = {"preset": "llama-2-7b", "num_hidden_layers": 2}
    muon = ("optimizer.type=Muon", "deepspeed.gradient_clipping=0.0")
    adamw, other = (plan("zero1", model, *more) for more in ((), muon))
    matrices = 2 * (4 * 4096 * 4096 + 3 * 4096 * 11008)
    assert adamw.device_steady.optimizer - other.device_steady.optimizer == 4 * matrices / 4


@pytest.mark.parametrize(
    ("name", "overrides", "what"),
    [
        ("zero3", (), []),
        ("zero3_superoffload", (), ["zero_optimization.offload_optimizer.super_offload"]),
        ("zero3_deepcompile", (), ["compile.deepcompile"]),
        ("zero3", ("train.compile=true",), []),
        ("zero2_autocast", ("train.compile=true",), ["train.compile under torch_autocast"]),
        (
            "zero2_autocast",
            ('deepspeed.torch_autocast.lower_precision_safe_modules=["torch.nn.Linear"]',),
            ["torch_autocast.lower_precision_safe_modules"],
        ),
        ("zero2", ("optimizer.type=Muon", "deepspeed.gradient_clipping=0.0"), ["Muon's update"]),
    ],
)
def test_what_is_not_in_the_numbers_is_said(
    name: str, overrides: tuple[str, ...], what: list[str]
) -> None:
    assert plan(name, {"preset": "tiny"}, *overrides).to_dict()["unplayed"] == what


def test_weights_are_flattened_on_the_host_where_the_device_has_no_room() -> None:
    """DeepSpeed looks for room for a second copy, and makes it on the host if there is none."""
    model = {"preset": "llama-2-7b"}
    roomy = plan("zero2", model, world=64)
    tight = plan("zero2", model, world=64, device_memory=20 * 2**30)
    weights = roomy.phases["construct"].device.now.parameters
    assert roomy.phases["initialise"].device.peak.total >= 2 * weights * 0.999
    assert tight.phases["initialise"].device.peak.total < 1.2 * weights
    assert roomy.host_peak_bytes < 2**23
    assert tight.host_peak_bytes >= 2 * weights * 0.999


def test_a_trillion_parameters_take_no_time() -> None:
    model = {
        **{"hidden_size": 25600, "intermediate_size": 102400, "num_hidden_layers": 96},
        **{"num_attention_heads": 160, "head_dim": 160, "vocab_size": 128256},
    }
    start = time.process_time()
    found = plan("zero3", model, world=1024, sequence=4096, recompute="block")
    assert time.process_time() - start < 1.0
    count = 96 * (4 * 25600**2 + 3 * 25600 * 102400) + 2 * 128256 * 25600
    assert count > 1e12
    states = found.device_steady.master + found.device_steady.optimizer
    assert states == pytest.approx(12 * count / 1024, rel=1e-3)


def every_section(self: Passes, start: int, stop: int) -> list[Part]:
    """As `Passes._parts` without its memory: every section is recorded for itself."""
    windows = (self.windows if self.first else self.later)[start:stop]
    return self.walk.record(self.order[start:stop], windows)


def first_block(self: Passes, start: int, stop: int) -> list[Part]:
    """As `Passes._parts`, blind to what is gathered and recomputed."""
    head = self.order[start]
    key = (head.kind, head.way)
    return self.recorded.setdefault(key, every_section(self, start, stop))


RUNS = [
    ("zero1", 8, "mlp", "train.recompute.every=2"),
    ("zero3", 8, "attention", "train.recompute.every=3"),
    ("zero3_offload", 3, None, "deepspeed.zero_optimization.stage3_prefetch_bucket_size=90000"),
    ("zero3_hpz", 16, "block", "deepspeed.zero_optimization.stage3_max_reuse_distance=0"),
]


def alike(shape: dict[str, Any]) -> list[Memory]:
    return [
        plan(name, shape, *more, world=world, accumulation=2, recompute=recompute)
        for name, world, recompute, *more in RUNS
    ]


@settings(deadline=None, max_examples=15)
@given(shape=SHAPES)
def test_sections_that_are_alike_are_played_alike(shape: dict[str, Any]) -> None:
    """One recording stands for all of its kind: the same bytes as each recorded for itself."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Passes, "_parts", every_section)
        expected = alike(shape)
    assert alike(shape) == expected


def test_a_section_that_stands_for_another_kind_is_seen() -> None:
    shape = {"hidden_size": 256, "num_attention_heads": 4, "num_hidden_layers": 5}
    shape |= {"intermediate_size": 512, "vocab_size": 5000}
    expected = alike(shape)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Passes, "_parts", first_block)
        assert all(map(ne, alike(shape), expected))


def test_a_ledger_peaks_where_most_is_held() -> None:
    ledger = Ledger()
    with ledger.phase("one"):
        ledger.hold("master", 5)
        ledger.peek("buckets", 7)
        ledger.hold("gradients", 3, host=True)
        ledger.free("master", 2)
        ledger.peek("other", 8, host=True)
    found = ledger.phases["one"]
    assert found.device.now == Terms(master=3)
    assert found.device.peak == Terms(master=5, buckets=7)
    assert found.host.peak == Terms(gradients=3, other=8)
    assert found.total.peak == Terms(master=3, gradients=3, other=8)
    assert replace(found.total.now, master=0) == Terms(gradients=3)
    with ledger.phase("one"):
        ledger.free("master", 3)
    assert ledger.phases["one"].device.peak.total == 12  # the wider of both

"""Payloads by tensor size, wire bytes by each call's own group, copies over the host link."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing._internal.distributed.fake_pg import FakeStore

from ds_llama.measure.traffic import Moved, Traffic, swapped

# torch 2.13 gives two of the collectives other names, DeepSpeed calls them by the old ones.
pytestmark = pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning")

RANKS, SIZE = 8, 640
WHOLE = 4 * SIZE  # bytes: fp32
ONCE = WHOLE * (RANKS - 1) // RANKS


@pytest.fixture(scope="module", autouse=True)
def world() -> Iterator[None]:
    """The first of eight ranks of torch's own group that moves nothing."""
    dist.init_process_group("fake", rank=0, world_size=RANKS, store=FakeStore())
    yield
    dist.destroy_process_group()


def whole() -> torch.Tensor:
    """A view of a buffer ten times as large, which is what DeepSpeed passes."""
    return torch.zeros(10 * SIZE)[SIZE : 2 * SIZE]


def part() -> torch.Tensor:
    return torch.zeros(10 * SIZE)[: SIZE // RANKS]


def parts() -> list[torch.Tensor]:
    return list(whole().chunk(RANKS))


def coalesced() -> None:
    with dist._coalescing_manager(device=torch.device("cpu")):
        for _ in range(2):
            dist.all_gather_into_tensor(whole(), part())


CALLS: dict[str, tuple[str, Callable[[], object], int, int]] = {
    "all_reduce": ("all_reduce", lambda: dist.all_reduce(whole()), WHOLE, 2 * ONCE),
    "reduce": ("reduce", lambda: dist.reduce(whole(), 0), WHOLE, ONCE),
    "broadcast": ("broadcast", lambda: dist.broadcast(whole(), 0), WHOLE, ONCE),
    "base": ("all_gather", lambda: dist.all_gather_into_tensor(whole(), part()), WHOLE, ONCE),
    "list": ("all_gather", lambda: dist.all_gather(parts(), part()), WHOLE, ONCE),
    "coalesced": ("all_gather", coalesced, 2 * WHOLE, 2 * ONCE),
    "scatter base": (
        *("reduce_scatter", lambda: dist.reduce_scatter_tensor(part(), whole())),
        *(WHOLE, ONCE),
    ),
    "scatter list": ("reduce_scatter", lambda: dist.reduce_scatter(part(), parts()), WHOLE, ONCE),
    "all_to_all": (
        *("all_to_all", lambda: dist.all_to_all_single(whole(), whole())),
        *(WHOLE, ONCE),
    ),
}


@pytest.mark.parametrize(("kind", "call", "payload", "wire"), CALLS.values(), ids=list(CALLS))
def test_the_payload_is_the_tensor_not_its_storage(
    kind: str, call: Callable[[], object], payload: int, wire: int
) -> None:
    assert whole().untyped_storage().nbytes() == 10 * WHOLE  # what a count of storages would say
    with Traffic() as traffic:
        call()
    moved = traffic.read()
    assert moved.collectives == {kind: payload}
    assert moved.wire_bytes == {kind: wire}
    assert moved.elements == {(kind, "float32"): payload // 4}
    assert moved.volume_bytes == payload * (2 if kind == "all_reduce" else 1)
    assert moved.control_bytes == 0


def test_a_smaller_group_has_its_own_share_of_the_wire() -> None:
    group = dist.new_group([0, 1])
    with Traffic() as traffic:
        dist.all_reduce(whole(), group=group)
    assert traffic.read().wire_bytes == {"all_reduce": 2 * WHOLE // 2}


def test_what_steers_is_counted_apart() -> None:
    with Traffic() as traffic:
        dist.all_reduce(torch.zeros(2, dtype=torch.int64))  # a token count and a wish to stop
        dist.all_reduce(torch.zeros(1))  # a norm
        dist.all_gather([torch.zeros(4) for _ in range(RANKS)], torch.zeros(4))  # losses
        dist.broadcast(torch.zeros(1000, dtype=torch.int64), 0)
        dist.barrier()
    moved = traffic.read()
    assert (moved.collectives, moved.calls) == ({}, {})
    assert moved.control_bytes == 16 + 4 + 16 * RANKS + 8000


def test_quantized_weights_are_no_flags() -> None:
    with Traffic() as traffic:
        dist.all_gather_into_tensor(
            torch.zeros(SIZE, dtype=torch.int8), torch.zeros(SIZE // RANKS, dtype=torch.int8)
        )
    assert traffic.read().collectives == {"all_gather": SIZE}


def test_what_is_in_one_tensor_is_weights_however_few() -> None:
    """A norm's weights in a large world, and their gradients; a sum of as many is a norm's."""
    few = torch.zeros(2 * RANKS)
    with Traffic() as traffic:
        dist.all_gather_into_tensor(few, few[:2].clone())
        dist.reduce_scatter_tensor(few[:2].clone(), few)
        dist.all_reduce(few)
    moved = traffic.read()
    assert moved.calls == {"all_gather": 1, "reduce_scatter": 1}
    assert moved.collectives == {"all_gather": 8 * RANKS, "reduce_scatter": 8 * RANKS}
    assert moved.control_bytes == 8 * RANKS


def test_backward_passes_count_and_reset_forgets() -> None:
    weight = torch.ones(SIZE, requires_grad=True)
    weight.register_post_accumulate_grad_hook(lambda p: dist.all_reduce(p.grad))
    with Traffic() as traffic:
        weight.sum().backward()
        first = traffic.read()
        traffic.reset()
        assert traffic.read() == Moved()
    assert first.calls == {"all_reduce": 1}
    assert first.collectives == {"all_reduce": WHOLE}


def test_copies_to_a_device_count_in_the_dtype_that_arrives() -> None:
    """The other way needs a device: tests/unit/simulator looks at both."""
    with FakeTensorMode(), Traffic() as traffic:
        host, device = torch.zeros(100), torch.zeros(100, device="cuda:0")
        host.to("cuda:0", torch.bfloat16)
        host.to(torch.bfloat16), host.to("meta"), device.clone()
        moved = traffic.read()
    assert (moved.to_device_bytes, moved.to_host_bytes) == (200, 0)
    assert moved.host_link_bytes == 200


def test_swaps_are_told_to_whoever_counts() -> None:
    buffer = torch.zeros(100, dtype=torch.bfloat16)
    swapped(read=[buffer])  # to nobody
    with Traffic() as outer, Traffic() as inner:
        swapped(read=[buffer[:30], buffer])
        swapped(written=[buffer])
    for traffic in (outer, inner):
        moved = traffic.read().to_dict()
        assert (moved["nvme_read_bytes"], moved["nvme_write_bytes"]) == (260, 200)


def test_modes_load_what_zero_init_would_break() -> None:
    """In a process that has it not yet: the first operation may be one inside `zero.Init`."""
    code = (
        "import sys\n"
        "from ds_llama.measure.accounting import Account\n"
        "assert 'torch._dynamo' not in sys.modules\n"
        "with Account():\n"
        "    assert 'torch._dynamo' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

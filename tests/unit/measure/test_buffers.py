"""What compiled code holds, counted by an Account, beside what the allocator was asked for."""

from __future__ import annotations

from collections.abc import Iterator
from unittest import mock

import pytest
import torch
from torch._C._profiler import _EventType
from torch._dynamo.utils import counters
from torch.profiler import ProfilerActivity, profile

from ds_llama.measure import buffers
from ds_llama.measure.accounting import Account
from ds_llama.measure.flops import Flops

SIZE = 256
MATRIX = SIZE * SIZE * 4


def _function(x: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A buffer that an operation is given, and one that no operation sees; neither of them takes a
    kernel that would have to be compiled, which takes half a minute."""
    return x @ weight, x.new_empty(SIZE, SIZE)


def _allocated(run: object) -> int:
    """The most bytes that the allocator gave at once while `run` ran, less those it had given."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()  # type: ignore[operator]
    results = profiler.profiler.kineto_results  # type: ignore[union-attr]
    changes = sorted(_changes(results.experimental_event_tree()))
    held = most = 0
    for _, size in changes:
        held += size
        most = max(most, held)
    return most


def _changes(events: list) -> Iterator[tuple[int, int]]:
    for event in events:
        if event.tag == _EventType.Allocation:
            yield event.start_time_ns, event.extra_fields.alloc_size
        yield from _changes(event.children)


@pytest.mark.filterwarnings("ignore:.*script_method:DeprecationWarning")
def test_compiled_code_is_counted_as_the_allocator_counts_it() -> None:
    x, weight = torch.randn(SIZE, SIZE), torch.randn(SIZE, SIZE)
    torch._dynamo.reset()
    counters.clear()
    compiled = torch.compile(_function)
    account, flops = Account(), Flops()
    account.track([x, weight])
    with account, flops:
        with account.phase("compiled here"):
            compiled(x, weight)
        with account.phase("compiled"):
            compiled(x, weight)
        with account.phase("as it is"):
            _function(x, weight)
    assert counters["frames"] == {"total": 1, "ok": 1}  # compiled while somebody counted
    first, again, plain = (phase.total.peak_bytes - 2 * MATRIX for phase in account.phases)
    assert first >= again
    assert again == _allocated(lambda: compiled(x, weight))
    assert plain == _allocated(lambda: _function(x, weight))
    assert again == plain == 2 * MATRIX
    assert flops.forward == 3 * 2 * SIZE**3
    assert counters["frames"] == {"total": 1, "ok": 1}  # nor was it for being counted
    untold = mock.patch.object(buffers, "_telling", lambda maker: maker)
    with untold, account, account.phase("unseen"):
        compiled(x, weight)
    assert account.phases[-1].total.peak_bytes - 2 * MATRIX == MATRIX
    torch._dynamo.reset()

from __future__ import annotations

import gc
import threading
from collections.abc import Callable

import pytest
import torch
from torch import nn

from ds_llama.measure import storages
from ds_llama.measure.accounting import CATEGORIES, Account, Bytes
from ds_llama.measure.labels import Live

F32 = 4


@pytest.fixture
def account() -> Account:
    return Account()


def test_views_count_once_and_deaths_are_seen(account: Account) -> None:
    with account:
        x = torch.zeros(10, 3)
        assert account.bytes() == Bytes(120, 120)
        rows = [x.view(3, 10), x[2:], x.t(), x.detach(), x.untyped_storage()]
        assert account.bytes() == Bytes(120, 120)
        y = x + 1
        del x
        assert account.bytes() == Bytes(240, 240)  # the views still hold it
        del rows
        assert account.bytes() == Bytes(120, 240)
    del y
    assert account.bytes() == Bytes(0, 240)  # a death after the end is still a death


def test_phases_have_peaks_of_their_own(account: Account) -> None:
    with account:
        with account.phase("outer"):
            x = torch.zeros(100)
            with account.phase("inner"):
                y = torch.zeros(50)
                del y
            y = torch.zeros(200)
            del y
        with account.phase("quiet"):
            pass
    assert {p.name: p.total for p in account.phases} == {
        "inner": Bytes(400, 600),
        "outer": Bytes(400, 1200),
        "quiet": Bytes(400, 400),
    }
    del x


def test_a_phase_ends_also_by_an_exception(account: Account) -> None:
    kept = []

    def fail() -> None:
        with account.phase("broken"):
            kept.append(torch.zeros(5))
            raise ZeroDivisionError

    with account, pytest.raises(ZeroDivisionError):
        fail()
    assert account.phases[0].total == Bytes(20, 20)


def test_forward_and_backward_by_hand(account: Account) -> None:
    """x (8,4) @ w (4,6) -> y (8,6); the loss is its sum. All fp32."""
    w = torch.ones(4, 6, requires_grad=True)
    x = torch.ones(8, 4)
    account.track([w, x])
    held = (4 * 6 + 8 * 4) * F32
    with account:
        with account.phase("forward"):
            loss = (x @ w).sum()
        with account.phase("backward"):
            loss.backward()
    forward, backward = account.phases
    # y is made, then its sum; sum's backward needs only the shape, so y is gone
    assert forward.total == Bytes(held + F32, held + 8 * 6 * F32 + F32)
    # ones_like(loss), expanded without memory over y; then w.grad
    assert backward.total == Bytes(held + F32 + 4 * 6 * F32, held + 2 * F32 + 4 * 6 * F32)


@pytest.mark.parametrize("before", [True, False], ids=["tracked before", "made inside"])
def test_storages_resized_in_place(account: Account, before: bool) -> None:
    """FSDP and ZeRO-3 free and refill a parameter's storage behind its back."""
    if before:
        x = torch.zeros(25)
        account.track([x])
    with account:
        if not before:
            x = torch.zeros(25)
        x.untyped_storage().resize_(0)
        assert account.bytes() == Bytes(0, 100)
        x.untyped_storage().resize_(400)
        assert account.bytes() == Bytes(400, 400)
        x.untyped_storage().resize_(0)
        assert account.bytes() == Bytes(0, 400)
    x.untyped_storage().resize_(400)
    assert account.bytes() == Bytes(0, 400)  # not entered: not watched


def test_empty_storage_that_grows(account: Account) -> None:
    with account:
        x = torch.empty(0)
        x.untyped_storage().resize_(64)
        assert account.bytes() == Bytes(64, 64)
        y = torch.empty(0)
        torch.add(torch.ones(4), 1, out=y)  # an operation that resizes what it is given
        assert account.bytes().now_bytes == 64 + 16
        y.resize_(8)
        assert account.bytes().now_bytes == 64 + 32
    del x


def test_another_storage_under_the_same_tensor(account: Account) -> None:
    with account:
        x = torch.zeros(10)
        x.set_(torch.zeros(30))
        assert account.bytes() == Bytes(120, 160)
        x.data = torch.zeros(5)
        assert account.bytes().now_bytes == 20
        x.data = torch.empty(0)
        assert account.bytes().now_bytes == 0


def test_what_existed_before_counts_when_tracked_or_used(account: Account) -> None:
    layer = nn.Linear(3, 2)
    layer(torch.ones(1, 3)).sum().backward()
    account.track(layer.parameters())
    account.track([layer.weight.view(6), layer.weight.detach()])  # aliases
    assert account.bytes() == Bytes(2 * 8 * F32, 2 * 8 * F32)
    late = torch.zeros(7)
    with account:
        assert account.bytes().now_bytes == 64
        late.add_(1)
        assert account.bytes().now_bytes == 64 + 28


def test_tied_weights_count_once(account: Account) -> None:
    head, table = nn.Linear(4, 10, bias=False), nn.Embedding(10, 4)
    head.weight = table.weight
    account.track([*head.parameters(), *table.parameters()])
    assert account.bytes().now_bytes == 160


def test_device_and_host_apart() -> None:
    """On fake tensors, whose storages are all on `meta`, the tensor's device counts."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    account = Account(accelerator="cuda")
    with FakeTensorMode(), account, account.phase("mixed"):
        host = torch.empty(10)
        device = torch.empty(1000, device="cuda")
        gone = torch.empty(500, device="cuda")
        del gone
        more = torch.empty(50)
    phase = account.phases[0]
    assert phase.device == Bytes(4000, 6000)
    assert phase.host == Bytes(240, 240)
    assert phase.total == Bytes(4240, 6040)  # not the sum of the peaks
    assert phase.to_dict()["device"] == {
        "now_bytes": 4000,
        "peak_bytes": 6000,
        "now": dict.fromkeys(CATEGORIES, 0) | {"other": 4000},
        "peak": dict.fromkeys(CATEGORIES, 0) | {"other": 6000},
    }
    del host, device, more


def test_on_a_cpu_run_all_is_device(account: Account) -> None:
    with account, account.phase("p"):
        x = torch.zeros(2)
    assert account.phases[0].device == Bytes(8, 8)
    assert account.phases[0].host == Bytes(0, 0)
    assert account.bytes("cpu") == Bytes(8, 8)
    assert account.bytes("cuda") == Bytes(0, 0)
    del x


def test_meta_tensors_hold_nothing(account: Account) -> None:
    with account:
        x = torch.empty(10, device="meta") + 1
    assert x.shape == (10,)
    assert account.bytes() == Bytes(0, 0)


def test_wrapper_subclasses_count_by_what_they_hold(account: Account) -> None:
    from torch.testing._internal.two_tensor import TwoTensor

    pair = TwoTensor(torch.zeros(10), torch.zeros(10))
    account.track([pair])
    assert account.bytes().now_bytes == 80
    with account:
        out = pair + 1
        assert account.bytes().now_bytes == 160
    assert type(out) is TwoTensor


def test_sparse_gradients_are_counted(account: Account) -> None:
    table = nn.Embedding(100, 4, sparse=True)
    account.track(table.parameters())
    with account:
        table(torch.tensor([3, 5])).sum().backward()
        grad = table.weight.grad
        assert grad is not None
        assert grad.layout is torch.sparse_coo
        # two int64 indices and two rows of values, the input ids once (indices are a view of it)
        assert account.bytes().now_bytes == 1600 + 16 + 32


def test_garbage_in_cycles_waits_for_the_edge_of_a_phase(account: Account) -> None:
    with account:
        assert not gc.isenabled()
        with account.phase("cycle"):
            loop: list[object] = [torch.zeros(10)]
            loop.append(loop)
            del loop
            assert account.bytes() == Bytes(40, 40)
        assert account.phases[0].total == Bytes(0, 40)
    assert gc.isenabled()


def test_tensors_that_die_in_another_thread(account: Account) -> None:
    with account:
        box = [torch.zeros(10)]
        thread = threading.Thread(target=box.clear)
        thread.start()
        thread.join()
        assert account.bytes() == Bytes(0, 40)


def _training(account: Account) -> list[dict[str, object]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 64), nn.SiLU(), nn.LayerNorm(64), nn.Linear(64, 8))
    optimizer = torch.optim.AdamW(model.parameters())
    account.track(model.parameters())
    with account:
        for _ in range(2):
            with account.phase("forward"):
                loss = model(torch.randn(16, 32)).square().mean()
            with account.phase("backward"):
                loss.backward()
            with account.phase("step"):
                optimizer.step()
                optimizer.zero_grad()
            del loss
    return [phase.to_dict() for phase in account.phases]


def test_two_runs_agree_to_the_byte() -> None:
    first, second = _training(Account()), _training(Account())
    assert first == second
    assert len(first) == 6
    parameters = (32 * 64 + 64 + 2 * 64 + 64 * 8 + 8) * F32
    end = first[-1]["total"]
    assert isinstance(end, dict)
    # weights, two moments, Adam's step of 4 bytes for each of 6 parameters, the loss
    assert end["now_bytes"] == 3 * parameters + 6 * F32 + F32


def test_the_resize_method_is_given_back(account: Account) -> None:
    other = Account()
    with account:
        with other:
            pass
        assert "resize_" in vars(torch.UntypedStorage)
    assert "resize_" not in vars(torch.UntypedStorage)


class _ByTensor(Account):
    """Sabotaged: every tensor counts, aliases again."""

    def _see(self, tensor: torch.Tensor) -> Live | None:
        live = super()._see(tensor)
        if live is not None:
            self._ledger.change(live, tensor.nbytes)
        return None


class _Unwatched(Account):
    """Sabotaged: nobody tells of resizes."""

    def __enter__(self) -> Account:
        super().__enter__()
        storages.unwatch(self._resized)
        return self

    def __exit__(self, *exception: object) -> None:
        storages.watch(self._resized)
        super().__exit__(*exception)


@pytest.mark.parametrize(
    ("broken", "check"),
    [
        (_ByTensor, test_views_count_once_and_deaths_are_seen),
        (_ByTensor, test_forward_and_backward_by_hand),
        (_ByTensor, test_tied_weights_count_once),
        (_Unwatched, lambda account: test_storages_resized_in_place(account, False)),
    ],
    ids=["views", "backward", "tied", "resize"],
)
def test_sabotage_is_caught(broken: type[Account], check: Callable[[Account], None]) -> None:
    with pytest.raises(AssertionError):
        check(broken())

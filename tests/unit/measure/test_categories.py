"""What bytes are for: by hand, on a model small enough to write every tensor down."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from ds_llama.measure import accounting, labels
from ds_llama.measure.accounting import CATEGORIES, Account
from ds_llama.measure.phases import Bytes, Phase, largest, merged

F32 = 4
ROWS, WIDE, VOCABULARY = 8, 16, 50


class Holder:
    """An engine of sorts."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.body = nn.Linear(WIDE, WIDE, bias=False)
        self.head = nn.Linear(WIDE, VOCABULARY, bias=False)
        self.optimizer = torch.optim.AdamW([*self.body.parameters(), *self.head.parameters()])
        self.scratch = torch.zeros(100)


def holdings(holder: Holder) -> Iterator[tuple[torch.Tensor, str]]:
    yield holder.body.weight, "parameters"
    yield holder.head.weight, "parameters"
    yield holder.scratch, "buckets"


def trained(account: Account) -> dict[str, Phase]:
    """Two steps; the phases of the second."""
    account.vocabulary = VOCABULARY
    with account:
        holder = Holder()
        account.ask(holder, holdings)
        x = torch.ones(ROWS, WIDE)
        for _ in range(2):
            with accounting.phase("forward"):
                loss = holder.head(holder.body(x)).square().sum()
            with accounting.phase("backward"):
                loss.backward()
            with accounting.phase("step"):
                holder.optimizer.step()
                holder.optimizer.zero_grad()
    return {phase.name: phase for phase in account.phases[3:]}


PARAMETERS = (WIDE * WIDE + VOCABULARY * WIDE) * F32
ALWAYS = {
    "parameters": PARAMETERS,
    "optimizer": 2 * PARAMETERS + 2 * F32,  # two moments, and a counter for each parameter
    "buckets": 100 * F32,
}


def split(**more: int) -> dict[str, int]:
    return dict.fromkeys(CATEGORIES, 0) | ALWAYS | more


def check(account: Account) -> None:
    found = trained(account)
    hidden, logits = ROWS * WIDE * F32, ROWS * VOCABULARY * F32
    forward, backward, step = (found[name].total for name in ("forward", "backward", "step"))
    # x is of before the phases. Kept: what head and square need; the loss
    x = ROWS * WIDE * F32
    assert forward.now == split(activations=hidden + F32, logits=logits, other=x)
    # square's output, and then its sum beside the loss of the step before
    assert forward.peak == split(activations=hidden + 2 * F32, logits=2 * logits, other=x)
    assert backward.now == split(gradients=PARAMETERS, activations=F32, other=x)
    assert step.now == split(activations=F32, other=x)
    for part in (forward, backward, step):
        assert sum(part.now.values()) == part.now_bytes
        assert sum(part.peak.values()) == part.peak_bytes


def test_every_tensor_of_a_step_by_hand() -> None:
    check(Account())


@pytest.mark.parametrize("broken", ["made", "used"])
def test_sabotage_is_caught(monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    monkeypatch.setattr(labels, broken, lambda *_: labels.OTHER)
    with pytest.raises(AssertionError):
        check(Account())


def test_an_owner_that_is_gone_is_asked_no_more() -> None:
    account, holder = Account(), Holder()
    account.ask(holder, holdings)
    with account, account.phase("p"):
        del holder
    assert account.phases[0].total.now["parameters"] == 0


def test_without_an_account_a_phase_is_nothing() -> None:
    with accounting.phase("forward"):
        assert accounting.entered() is None
    with Account() as account:
        assert accounting.entered() is account
        with accounting.phase("forward"):
            pass
    assert [phase.name for phase in account.phases] == ["forward"]
    assert accounting.entered() is None


def test_the_history_is_the_account() -> None:
    """Summed up it gives every phase's end and peak again, and the stacks say who it was."""
    account = Account(stacks=True)
    trained(account)
    running = list(itertools.accumulate(change.delta_bytes for change in account.history()))
    begins = [edge for edge in account.edges if edge[2]]
    ends = [edge for edge in account.edges if not edge[2]]
    for phase, (start, name, _), (end, _, _) in zip(account.phases, begins, ends, strict=True):
        assert phase.name == name
        assert phase.total == Bytes(running[end - 1], max(running[max(0, start - 1) : end]))
    logits = next(change for change in account.history() if change.category == "logits")
    assert any("trained" in frame for frame in logits.stack.format())


def test_without_asking_no_history_is_kept() -> None:
    account = Account()
    trained(account)
    assert not list(account.history())


def test_micro_batches_become_one_phase() -> None:
    account = Account()
    kept = []
    with account:
        for size in (3, 10, 1):
            with account.phase("forward"):
                torch.zeros(size)
                kept.append(torch.zeros(1))
            with account.phase("backward"):
                pass
    forward, backward = merged(account.phases)
    assert (forward.name, backward.name) == ("forward", "backward")
    assert forward.total == Bytes(3 * F32, 11 * F32)
    assert forward.total.peak["activations"] == 11 * F32


def test_the_largest_of_any_rank() -> None:
    ranks = []
    for size in (4, 9):
        with Account(process=True) as account, account.phase("forward"):
            torch.zeros(size)
        ranks.append(account.phases[0].to_dict())
    found = largest(ranks)
    assert found["total"] == ranks[1]["total"]
    peaks = [rank["process"]["peak_rss_bytes"] for rank in ranks]
    assert found["process"]["peak_rss_bytes"] == max(peaks)
    assert found["process"]["device_peak_bytes"] is None

"""--include and --exclude, held against DeepSpeed's own parser."""

from __future__ import annotations

import pytest
from deepspeed.launcher.runner import parse_inclusion_exclusion
from hypothesis import event, example, given
from hypothesis import strategies as st

from ds_llama.errors import CallError
from ds_llama.launcher.hostfile import Host
from ds_llama.launcher.selection import select

HOSTS = [Host("worker-0", 4), Host("worker-1", 4), Host("me@login", 1)]


def chosen(
    include: str | None = None, exclude: str | None = None
) -> list[tuple[str, tuple[int, ...]]]:
    return [(host.name, host.device_ids) for host in select(HOSTS, include, exclude)]


def test_deepspeeds_own_examples() -> None:
    """runner.py:316: what its docstring says."""
    assert chosen("worker-0@worker-1:0,2") == [("worker-0", (0, 1, 2, 3)), ("worker-1", (0, 2))]
    assert chosen(None, "worker-1:0") == [
        ("worker-0", (0, 1, 2, 3)),
        ("worker-1", (1, 2, 3)),
        ("me@login", (0,)),
    ]


def test_nothing_chosen_is_everything() -> None:
    assert select(HOSTS, None, None) == HOSTS


def test_the_order_is_the_hostfiles() -> None:
    assert chosen("login@worker-1:3,1@worker-0:2") == [
        ("worker-0", (2,)),
        ("worker-1", (1, 3)),
        ("me@login", (0,)),
    ]


def test_a_host_may_be_named_once_for_each_slot() -> None:
    assert chosen("worker-0:0@worker-0:3") == [("worker-0", (0, 3))]


def test_slots_are_the_ranks_that_are_left() -> None:
    assert select(HOSTS, "worker-0:1,3", None) == [Host("worker-0", 2, (1, 3))]
    assert select(HOSTS, "worker-0:0,1", None) == [Host("worker-0", 2)]


WRONG = [
    ("worker-2", "the hostfile has no host 'worker-2'", 1, "did you mean worker-1?"),
    ("worker-0@xyz:0", "the hostfile has no host 'xyz'", 10, "the hostfile has worker-0, worker-1"),
    ("worker-0:4", "worker-0 has no slot 4", 10, "its slots are 0 to 3"),
    ("worker-0:0,1,77", "worker-0 has no slot 77", 14, "its slots are 0 to 3"),
    ("login:1", "login has no slot 1", 7, "its only slot is 0"),
    ("worker-0:-1", "'-1' is not the number of a slot", 10, "write HOST or HOST:SLOT"),
    ("worker-0:0-3", "'0-3' is not the number of a slot", 10, "write HOST or HOST:SLOT"),
    ("worker-0:0, 1", "' 1' is not the number of a slot", 12, "write HOST or HOST:SLOT"),
    ("worker-0:0:1", "'0:1' is not the number of a slot", 10, "write HOST or HOST:SLOT"),
    ("worker-0:", "'' is not the number of a slot", 10, "write HOST or HOST:SLOT"),
    ("worker-0:1_0", "'1_0' is not the number of a slot", 10, "write HOST or HOST:SLOT"),
    ("worker-0:٣", "'٣' is not the number of a slot", 10, "write HOST or HOST:SLOT"),
    ("worker-0:1,1", "slot 1 of worker-0 is named twice", 12, "write HOST or HOST:SLOT"),
    ("worker-0:1@worker-0:1", "slot 1 of worker-0 is named twice", 21, "write HOST or HOST:SLOT"),
    ("worker-0@worker-0", "worker-0 is named twice", 10, "write HOST or HOST:SLOT"),
    ("worker-0:1@worker-0", "worker-0 is named twice", 12, "write HOST or HOST:SLOT"),
    ("worker-0@worker-0:1", "worker-0 is named twice", 10, "write HOST or HOST:SLOT"),
    ("worker-0@", "a host's name is missing in 'worker-0@'", 10, "write HOST or HOST:SLOT"),
    ("", "a host's name is missing in ''", 1, "write HOST or HOST:SLOT"),
    (":0", "a host's name is missing in ':0'", 1, "write HOST or HOST:SLOT"),
    ("worker-0,worker-1", "the hostfile has no host 'worker-0,worker-1'", 1, ""),
    (" worker-0", "the hostfile has no host ' worker-0'", 1, "did you mean worker-0?"),
    ("me@login", "there is no host 'me'", 1, "@ is between hosts here: write login for me@login"),
]


@pytest.mark.parametrize("flag", ["--include", "--exclude"])
@pytest.mark.parametrize(("text", "what", "column", "remedy"), WRONG)
def test_what_is_wrong(flag: str, text: str, what: str, column: int, remedy: str) -> None:
    with pytest.raises(CallError) as caught:
        select(HOSTS, *((text, None) if flag == "--include" else (None, text)))
    assert caught.value.what == what
    assert caught.value.where == f"{flag}, column {column}"
    assert caught.value.remedy.startswith(remedy)


def test_both_at_once() -> None:
    with pytest.raises(CallError, match="--include and --exclude exclude each other") as caught:
        select(HOSTS, "worker-0", "worker-1")
    assert caught.value.remedy == "name what to use, or what not to use"


def test_nothing_left() -> None:
    with pytest.raises(CallError, match="'worker-0@worker-1@login' leaves no host") as caught:
        select(HOSTS, None, "worker-0@worker-1@login")
    assert (caught.value.where, caught.value.exit_code) == ("--exclude", 2)
    assert caught.value.remedy == "exclude less than everything"


NODE = st.builds(
    lambda name, slots: name if slots is None else f"{name}:{','.join(slots)}",
    st.sampled_from(["a", "b", "c", "d", ""]),
    st.none() | st.lists(st.sampled_from(["0", "1", "2", "3", "00", "x", ""]), max_size=3),
)
TEXTS = st.lists(NODE, max_size=4).map("@".join) | st.text("ab:@,01 -", max_size=12)
POOL = {"a": 1, "b": 3, "c": 2}


@example("b:2,0@a", True)
@example("b:1@b:2", False)
@given(TEXTS, st.booleans())
def test_what_passes_means_the_same_to_deepspeed(text: str, include: bool) -> None:
    """And what only DeepSpeed takes is one of the mistakes that it does not see."""
    hosts = [Host(name, slots) for name, slots in POOL.items()]
    both = (text, "") if include else ("", text)
    try:
        theirs: dict[str, list[int]] | None = parse_inclusion_exclusion(POOL, *both)
    except ValueError:
        theirs = None
    try:
        ours = select(hosts, *((text, None) if include else (None, text)))
    except CallError as error:
        what = error.what
    else:
        assert theirs is not None
        assert {host.name: list(host.device_ids) for host in ours} == theirs
        assert [host.name for host in ours] == list(theirs)
        return
    if theirs is not None:
        event(what)
        stricter = ("named twice", "leaves no host", "number of a slot", "name is missing")
        assert any(word in what for word in stricter)

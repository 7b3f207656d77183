"""Slurm's short forms, with the real `scontrol show hostnames` as oracle."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ds_llama.errors import ConfigError
from ds_llama.launcher import nodelist


@pytest.fixture(scope="session")
def slurm_conf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All that scontrol wants to see before it expands a list; it asks nobody."""
    if shutil.which("scontrol") is None:
        pytest.skip("needs scontrol (slurm-client)")
    path = tmp_path_factory.mktemp("slurm") / "slurm.conf"
    path.write_text("ClusterName=none\nSlurmctldHost=localhost\n")
    return path


def oracle(text: str, conf: Path) -> list[str] | None:
    """What scontrol makes of it; None when it says that it is none."""
    done = subprocess.run(
        ["scontrol", "show", "hostnames", text],
        env={"SLURM_CONF": str(conf), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=20,
    )
    return None if "nvalid" in done.stdout + done.stderr else done.stdout.split()


@st.composite
def ranges(draw: st.DrawFn) -> str:
    low = draw(st.integers(0, 120))
    text = f"{low:0{draw(st.integers(1, 4))}d}"
    if draw(st.booleans()):
        text += f"-{low + draw(st.integers(0, 4))}"
    return text


brackets = st.lists(ranges(), min_size=1, max_size=3).map(lambda found: f"[{','.join(found)}]")
prefixes = st.from_regex(r"[a-z][a-z0-9._-]{0,5}[a-z_-]", fullmatch=True)
plain = st.from_regex(r"[a-z][a-z0-9-]{0,6}", fullmatch=True)
several = st.lists(st.tuples(prefixes, brackets), min_size=1, max_size=3)
items = plain | several.map(lambda parts: "".join(map("".join, parts)))
lists = st.lists(items, min_size=1, max_size=4).map(",".join)


@settings(max_examples=50)
@given(text=lists)
def test_every_list_is_expanded_as_scontrol_does(slurm_conf: Path, text: str) -> None:
    assert nodelist.expand(text) == oracle(text, slurm_conf)


@settings(max_examples=50)
@given(text=st.text("an019[]-,", min_size=1, max_size=9))
def test_what_is_expanded_at_all_is_what_scontrol_says(slurm_conf: Path, text: str) -> None:
    """Stricter than scontrol, which reads `n[1-` as a node; but text behind a bracket, which newer
    releases read, older ones do not."""
    try:
        ours = nodelist.expand(text)
    except ConfigError:
        return
    theirs = oracle(text, slurm_conf)
    behind = any(len(word.split("]")[-1]) for word in text.split(",") if "]" in word)
    assert ours == theirs or (behind and theirs is None)


@pytest.mark.parametrize(
    ("text", "nodes"),
    [
        ("n1", ["n1"]),
        ("n[1-3,7]", ["n1", "n2", "n3", "n7"]),
        ("n[008-011]", ["n008", "n009", "n010", "n011"]),
        ("n[9-10],login", ["n9", "n10", "login"]),
        ("gpu[01-02]-ib,cpu3", ["gpu01-ib", "gpu02-ib", "cpu3"]),
        ("r[0-1]n[2-3]", ["r0n2", "r0n3", "r1n2", "r1n3"]),
        ("r[0-1]c[5]n[2-3].lan", ["r0c5n2.lan", "r0c5n3.lan", "r1c5n2.lan", "r1c5n3.lan"]),
    ],
)
def test_the_forms(text: str, nodes: list[str]) -> None:
    assert nodelist.expand(text) == nodes


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "it is empty"),
        ("a,,b", "there is nothing between two commas"),
        ("n[1-3", "its brackets do not match"),
        ("n1]", "its brackets do not match"),
        ("n[[1-2]]", "its brackets do not match"),
        ("n[]", "'' is neither a number nor a range"),
        ("n[a-b]", "'a-b' is neither a number nor a range"),
        ("n[1-2-3]", "'1-2-3' is neither a number nor a range"),
        ("n[1-\uff13]", "'1-\uff13' is neither a number nor a range"),
        ("n[3-1]", "the range 3-1 runs backwards"),
        ("-oProxyCommand=id", "'-oProxyCommand=id' is not a node's name"),
        ("n1;id", "'n1;id' is not a node's name"),
        ("n[1-99999]", "more than 65536 nodes"),
        ("n[1-999][1-999]", "more than 65536 nodes"),
        ("a[1-65536],b", "more than 65536 nodes"),
    ],
)
def test_what_is_no_list_says_why(text: str, why: str) -> None:
    with pytest.raises(ConfigError) as caught:
        nodelist.expand(text, "SLURM_STEP_NODELIST")
    assert str(caught.value).splitlines() == [
        f"error: {text!r} is not a list of nodes: {why}",
        "where: SLURM_STEP_NODELIST",
        "remedy: give what `echo $SLURM_JOB_NODELIST` prints in a job, for example n[1-3,7]",
    ]


def test_counts() -> None:
    assert nodelist.counts("2(x3),1") == [2, 2, 2, 1]
    assert nodelist.counts("8") == [8]


@pytest.mark.parametrize("text", ["", "2(x", "0", "2,", "2(x70000)", "-1", "(x2)", "two"])
def test_what_are_no_counts_says_so(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        nodelist.counts(text)
    assert str(caught.value).startswith(f"error: {text!r} are not counts: ")
    assert "where: SLURM_TASKS_PER_NODE" in str(caught.value)
    assert "remedy: Slurm writes one number a node, and 2(x3) for 2,2,2" in str(caught.value)

from __future__ import annotations

from pathlib import Path

import pytest
from deepspeed.launcher.runner import _parse_hostfile
from hypothesis import given
from hypothesis import strategies as st

from ds_llama.errors import CallError, ConfigErrors
from ds_llama.launcher.hostfile import Host, parse, read


def test_what_is_right() -> None:
    text = "# nodes\nnode-1 slots=8\n\n  me@10.0.0.2\tslots=4  # rack 2\r\nx.example.org slots=1"
    expected = [Host("node-1", 8), Host("me@10.0.0.2", 4), Host("x.example.org", 1)]
    assert parse(text, "hosts") == expected


@pytest.mark.parametrize(
    ("text", "what", "where"),
    [
        ("-oProxyCommand=id slots=1", "'-oProxyCommand=id' is not a host name", "1:1"),
        ("me@-o slots=1", "'me@-o' is not a host name", "1:1"),
        ("node[0-1] slots=1", "'node[0-1]' is not a host name", "1:1"),
        ("a;b slots=1", "'a;b' is not a host name", "1:1"),
        ("ok slots=1\n  nöde slots=1", "'nöde' is not a host name", "2:3"),
        ("a slots=0", "'slots=0' is not slots=N with N of at least 1", "1:3"),
        ("a slots=1x", "'slots=1x' is not slots=N with N of at least 1", "1:3"),
        ("a slots=2,3", "'slots=2,3' is not slots=N with N of at least 1", "1:3"),
        ("a slots=٣", "'slots=٣' is not slots=N with N of at least 1", "1:3"),
        ("a slots = 1", "'slots' is not slots=N with N of at least 1", "1:3"),
        ("a slots=1 gpus=2", "'gpus=2' after the slots means nothing", "1:11"),
        ("node", "node has no slots", "1:5"),
        ("", "the hostfile names no host", "1:1"),
        ("# all gone\n", "the hostfile names no host", "1:1"),
        ("a slots=1\nb slots=1\n a slots=2", "a is listed twice, first in line 1", "3:2"),
    ],
)
def test_what_is_wrong(text: str, what: str, where: str) -> None:
    with pytest.raises(ConfigErrors) as caught:
        parse(text, "hosts")
    [error] = caught.value.errors
    assert (error.what, error.where) == (what, f"hosts:{where}")
    assert error.remedy
    assert error.exit_code == 1


def test_every_wrong_line_is_named() -> None:
    with pytest.raises(ConfigErrors) as caught:
        parse("a\nb slots=1\n-c slots=1\n", "hosts")
    assert [error.where for error in caught.value.errors] == ["hosts:1:2", "hosts:3:1"]


def test_a_missing_file_is_a_wrong_call(tmp_path: Path) -> None:
    with pytest.raises(CallError) as caught:
        read(tmp_path / "hosts")
    assert caught.value.what == "the hostfile cannot be read: No such file or directory"
    assert caught.value.where == str(tmp_path / "hosts")
    assert caught.value.remedy.startswith("give the path of a hostfile, or --nproc")


LINES = st.lists(
    st.one_of(
        st.text(max_size=30),
        st.from_regex(r"[a-z@.-]{1,6} slots=[0-9x]{1,3}( #.*)?", fullmatch=True),
    )
)


@given(LINES)
def test_what_passes_means_the_same_to_deepspeed(lines: list[str]) -> None:
    text = "\n".join(line.replace("\n", " ") for line in lines)
    try:
        hosts = parse(text, "hosts")
    except ConfigErrors:
        return
    assert dict(_parse_hostfile(text.split("\n"))) == {host.name: host.slots for host in hosts}
    assert not any(host.name.startswith("-") for host in hosts)

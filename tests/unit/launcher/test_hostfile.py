from __future__ import annotations

import os
from pathlib import Path

import pytest
from deepspeed.launcher.runner import _parse_hostfile
from hypothesis import given
from hypothesis import strategies as st

from ds_llama.errors import CallError, ConfigErrors, DsLlamaError
from ds_llama.launcher.hostfile import Host, parse, read


def test_what_is_right() -> None:
    text = "# nodes\nnode-1 slots=8\n\n  me@10.0.0.2\tslots=4  # räck 2\r\nx.example.org slots=1"
    expected = [Host("node-1", 8), Host("me@10.0.0.2", 4), Host("x.example.org", 1)]
    hosts = parse(text, "hosts")
    assert hosts == expected
    assert [host.where for host in hosts] == ["hosts:2", "hosts:4", "hosts:5"]
    assert [host.host for host in hosts] == ["node-1", "10.0.0.2", "x.example.org"]
    assert hosts[1].device_ids == (0, 1, 2, 3)


def test_devices_are_those_that_were_chosen() -> None:
    assert Host("a", 2, (1, 3)).device_ids == (1, 3)


WRONG = [
    (
        "-oProxyCommand=id slots=1",
        "'-oProxyCommand=id' begins with a dash, which ssh would read as an option",
        "1:1",
    ),
    ("me@-o slots=1", "'me@-o' begins with a dash, which ssh would read as an option", "1:1"),
    (
        "node[0-1] slots=1",
        "'node[0-1]' is a range of hosts, which DeepSpeed takes for one name",
        "1:1",
    ),
    ("a;b slots=1", "'a;b' is not a host name", "1:1"),
    ("$(id) slots=1", "'$(id)' is not a host name", "1:1"),
    ("`id` slots=1", "'`id`' is not a host name", "1:1"),
    ("a,b slots=1", "'a,b' is not a host name", "1:1"),
    ("'a' slots=1", "\"'a'\" is not a host name", "1:1"),
    ("%h slots=1", "'%h' is not a host name", "1:1"),
    ("@a slots=1", "'@a' is not a host name", "1:1"),
    ("a b@c slots=1", "'b@c' is not slots=N with N of 1 to 99999", "1:3"),
    ("a@b@c slots=1", "'a@b@c' is not a host name", "1:1"),
    ("a..b slots=1", "'a..b' is not a host name", "1:1"),
    (f"{'a' * 64} slots=1", f"'{'a' * 64}' is not a host name", "1:1"),
    (f"{'a.' * 127}a slots=1", f"'{'a.' * 127}a' is not a host name", "1:1"),
    ("12 slots=1", "'12' is read as a number by some programs and as a name by others", "1:1"),
    (
        "010.0.0.1 slots=1",
        "'010.0.0.1' is read as a number by some programs and as a name by others",
        "1:1",
    ),
    (
        "0x7f.1 slots=1",
        "'0x7f.1' is read as a number by some programs and as a name by others",
        "1:1",
    ),
    ("node-1:8", "'node-1:8' has a colon", "1:1"),
    ("2001:db8::1 slots=1", "'2001:db8::1' is an IPv6 address, which --include cannot name", "1:1"),
    ("[::1] slots=1", "'[::1]' is an IPv6 address, which --include cannot name", "1:1"),
    ("fe80:;id slots=1", "'fe80:;id' is not a host name", "1:1"),
    ("slots=4 a", "'slots=4' stands where a host should", "1:1"),
    (
        "ok slots=1\n  nöde slots=1",
        "U+00F6 LATIN SMALL LETTER O WITH DIAERESIS is neither a name nor a blank",
        "2:4",
    ),
    (
        "n\u043ede slots=1",
        "U+043E CYRILLIC SMALL LETTER O is neither a name nor a blank",
        "1:2",
    ),
    ("a\u00a0slots=1", "U+00A0 NO-BREAK SPACE is neither a name nor a blank", "1:2"),
    ("a slots\uff1d1", "U+FF1D FULLWIDTH EQUALS SIGN is neither a name nor a blank", "1:8"),
    ("a slots=٣", "U+0663 ARABIC-INDIC DIGIT THREE is neither a name nor a blank", "1:9"),
    ("\ufeffa slots=1", "a byte order mark, which is not part of a name", "1:1"),
    ("a\0 slots=1", "U+0000 does not belong into a text", "1:2"),
    ("# a\rb slots=1", "U+000D does not belong into a text", "1:4"),
    ("a slots=1 # \x1b[2J", "U+001B does not belong into a text", "1:13"),
    (f"a slots=1 #{'x' * 5000}", "a line of 5011 characters", "1:4097"),
    ("a slots=0", "'slots=0' is not slots=N with N of 1 to 99999", "1:3"),
    ("a slots=1x", "'slots=1x' is not slots=N with N of 1 to 99999", "1:3"),
    ("a slots=2,3", "'slots=2,3' is not slots=N with N of 1 to 99999", "1:3"),
    ("a slots=100000", "'slots=100000' is not slots=N with N of 1 to 99999", "1:3"),
    ("a slots=1#b", "'slots=1#b' is not slots=N with N of 1 to 99999", "1:3"),
    ("a slots = 1", "blanks around =", "1:3"),
    ("a slots= 1", "blanks around =", "1:3"),
    ("a slots=1 gpus=2", "'gpus=2' after the slots means nothing", "1:11"),
    ("node", "node has no slots", "1:5"),
    ("", "the hostfile names no host", "1:1"),
    ("# all gone\n", "the hostfile names no host", "1:1"),
    ("a slots=1\nb slots=1\n a slots=2", "a is listed twice, first in line 1", "3:2"),
    ("a slots=1\nme@A slots=1", "A is listed twice, first in line 1", "2:1"),
]


@pytest.mark.parametrize(("text", "what", "where"), WRONG, ids=lambda value: ascii(value)[:30])
def test_what_is_wrong(text: str, what: str, where: str) -> None:
    with pytest.raises(ConfigErrors) as caught:
        parse(text, "hosts")
    [error] = caught.value.errors
    assert (error.what, error.where) == (what, f"hosts:{where}")
    assert error.remedy
    assert error.exit_code == 1
    assert all(character.isprintable() or character == "\n" for character in str(error))


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("a slots = 2", "write slots=2"),
        ("node[0-1] slots=1", "write one line a host"),
        ("a:2222", "write `a slots=N`; a port goes into ~/.ssh/config as Port 2222"),
        ("::1 slots=1", "give the host a name in ~/.ssh/config (Host, HostName) or /etc/hosts"),
        ("1.2 slots=1", "write an IPv4 address as a.b.c.d without zeros in front"),
        ("\ufeffa slots=1", "save the file as UTF-8 without a byte order mark"),
        ("x\nx", "write `host slots=N`, for example `node-1 slots=8`"),
    ],
)
def test_what_to_write_instead(text: str, remedy: str) -> None:
    with pytest.raises(ConfigErrors) as caught:
        parse(text, "hosts")
    assert caught.value.errors[0].remedy == remedy


def test_every_wrong_line_is_named() -> None:
    with pytest.raises(ConfigErrors) as caught:
        parse("a\nb slots=1\n-c slots=1\n", "hosts")
    assert [error.where for error in caught.value.errors] == ["hosts:1:2", "hosts:3:1"]


def test_of_many_wrong_lines_the_first_are_named() -> None:
    with pytest.raises(ConfigErrors) as caught:
        parse(";\n" * 500, "hosts")
    assert len(caught.value.errors) == 21
    assert caught.value.errors[-1].what == "480 more lines are wrong"


def test_a_missing_file_is_a_wrong_call(tmp_path: Path) -> None:
    with pytest.raises(CallError) as caught:
        read(tmp_path / "hosts")
    assert caught.value.what == "the hostfile cannot be read: No such file or directory"
    assert caught.value.where == str(tmp_path / "hosts")
    assert caught.value.remedy.startswith("give the path of a hostfile, or --nproc")


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")  # nobody writes
    for path in (tmp_path, tmp_path / "pipe", Path("/dev/zero"), "a\0b"):
        with pytest.raises(CallError, match=r"the hostfile (is not a regular|cannot be read)"):
            read(path)


def test_a_file_of_bytes(tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    cases = {
        b"a slots=1\nn\xffde slots=1": "the byte 0xff, which is not UTF-8, does not belong",
        "a slots=1".encode("utf-16"): "the hostfile is UTF-16",
        b"\xef\xbb\xbfa slots=1": "a byte order mark",
        b"a slots=1\n" + b"#" * 2**20: "the hostfile is larger than 1 MiB",
    }
    for data, what in cases.items():
        path.write_bytes(data)
        with pytest.raises(DsLlamaError) as caught:
            read(path)
        assert caught.value.what.startswith(what)
        str(caught.value).encode()  # no surrogate is left for a terminal


LINES = st.lists(
    st.one_of(
        st.text(max_size=30),
        st.from_regex(r"[a-z0-9@.-]{1,6} slots=[0-9x]{1,3}( #.*)?", fullmatch=True),
        st.from_regex(r"[a-z]{1,3}[ \t\x0b\xa0\r]{1,2}slots=[1-9][ \t\r]*", fullmatch=True),
    )
)


@given(LINES)
def test_what_passes_means_the_same_to_deepspeed(lines: list[str]) -> None:
    text = "\n".join(line.replace("\n", " ") for line in lines)
    try:
        hosts = parse(text, "hosts")
    except ConfigErrors:
        return
    # As open() in text mode gives DeepSpeed the lines: a lone CR ends one too.
    read_by_deepspeed = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    assert dict(_parse_hostfile(read_by_deepspeed)) == {host.name: host.slots for host in hosts}
    assert not any(host.host.startswith("-") for host in hosts)


@given(st.binary(max_size=200))
def test_no_bytes_are_a_traceback(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "bytes"
    path.write_bytes(data)
    try:
        assert read(path)
    except DsLlamaError as error:
        str(error).encode()

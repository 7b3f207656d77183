"""How a program is run on a host, and what the last words of ssh mean, which it did print."""

from __future__ import annotations

import ast
import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ds_llama.launcher.check import answers, session
from ds_llama.launcher.check.answers import BadAnswer, Facts
from ds_llama.launcher.check.reach import srun, ssh

CHANGED = """\
@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@
@    WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!     @
@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@
IT IS POSSIBLE THAT SOMEONE IS DOING SOMETHING NASTY!
Host key for node1 has changed and you have requested strict checking.
Host key verification failed.
"""
OPEN_KEY = """\
@         WARNING: UNPROTECTED PRIVATE KEY FILE!          @
Permissions 0644 for '/home/me/.ssh/id_ed25519' are too open.
Load key "/home/me/.ssh/id_ed25519": bad permissions
me@node1: Permission denied (publickey,keyboard-interactive).
"""
CONFIG = """\
/home/me/.ssh/config: line 1: Bad configuration option: foo
/home/me/.ssh/config: terminating, 1 bad configuration options
"""


@pytest.mark.parametrize(
    ("stderr", "code", "message", "remedy"),
    [
        (
            "ssh: Could not resolve hostname node1: Temporary failure in name resolution",
            "ssh-name",
            "its name is not known here",
            "mend the name in the hostfile",
        ),
        (
            "ssh: Could not resolve hostname node1: Name or service not known",
            "ssh-name",
            "its name is not known here",
            "/etc/hosts",
        ),
        (
            "ssh: connect to host node1 port 22: No route to host",
            "ssh-no-route",
            "there is no way to it: it is down, or its network is",
            "take it out of the hostfile",
        ),
        (
            "ssh: connect to host node1 port 22: Network is unreachable",
            "ssh-no-route",
            "there is no way to it: it is down, or its network is",
            "take it out of the hostfile",
        ),
        (
            "ssh: connect to host node1 port 22: Connection refused",
            "ssh-refused",
            "it is up, and nothing listens for ssh there",
            "start sshd on it",
        ),
        (
            "ssh: connect to host node1 port 22: Connection timed out",
            "ssh-timeout",
            "it does not answer ssh within 4 s",
            "firewall",
        ),
        (
            "Connection timed out during banner exchange",
            "ssh-timeout",
            "it does not answer ssh within 4 s",
            "firewall",
        ),
        (CHANGED, "ssh-host-key-changed", "its host key is not the one", "ssh-keygen -R node1"),
        (
            "No ED25519 host key is known for node1 and you have requested strict checking.\n"
            "Host key verification failed.",
            "ssh-host-key-unknown",
            "its host key is not known yet",
            "compare the key: ssh node1",
        ),
        (OPEN_KEY, "ssh-key-file", "ssh does not use your private key", "chmod 600"),
        (
            "me@node1: Permission denied (publickey,keyboard-interactive).",
            "ssh-permission",
            "it lets you in with none of your keys",
            "ssh-copy-id node1",
        ),
        (
            "Received disconnect from 10.0.0.2 port 22:2: Too many authentication failures",
            "ssh-permission",
            "it refuses your keys: too many were offered",
            "IdentitiesOnly",
        ),
        (
            CONFIG,
            "ssh-config",
            "ssh does not read its configuration here: /home/me/.ssh/config: line 1: Bad",
            "mend that line",
        ),
        (
            "kex_exchange_identification: Connection closed by remote host",
            "ssh-closed",
            "it closes the connection: kex_exchange_identification",
            "MaxStartups",
        ),
        (
            "something new",
            "ssh-failed",
            "it ended without an answer: something new",
            "see what `ssh node1 true` says",
        ),
        ("", "ssh-failed", "it ended without an answer: nothing was printed", "ssh node1 true"),
    ],
)
def test_what_ssh_says(stderr: str, code: str, message: str, remedy: str) -> None:
    fault = ssh().why("node1", sys.executable, 255, stderr)
    assert fault.code == code
    assert fault.message.startswith(message)
    assert remedy in fault.remedy


def test_a_host_without_a_python() -> None:
    fault = ssh().why("node1", "/opt/python", 72, "")
    assert fault.code == "no-python"
    assert fault.message == "there is no Python: neither /opt/python nor python3"
    fault = srun().why("node1", "/opt/python", 1, "ds-llama: Python 2.7\n")
    assert fault.message == "there is no /opt/python, and python is 2.7"
    fault = srun().why("node1", "/opt/python", 1, "srun: error: Unable to create step\n")
    assert (fault.code, "scontrol" in fault.remedy) == ("srun-failed", True)


@given(st.text(st.characters(exclude_characters="\0\r\n", exclude_categories=["Cs"]), min_size=1))
def test_the_other_shell_gets_every_word_as_it_is(python: str) -> None:
    """`sh` is asked what ssh would have the login shell run."""
    argv = ssh().argv("node1", python, 4711, "mark")
    assert argv[-3:-1] == ["--", "node1"]
    words = shlex.split(argv[-1])
    assert words[-3:] == [python, "python3", "python"]
    assert words[-5:-3] == ["4711", "mark"]


def test_a_name_is_never_an_option() -> None:
    argv = ssh().argv("-oProxyCommand=id", "python", 1, "mark")
    assert argv.index("--") + 1 == argv.index("-oProxyCommand=id")


def probe(*requests: object, python: str = sys.executable) -> list[dict[str, object]]:
    """The answers of a probe on this machine, started as a host's shell would."""
    source = session.program()
    line = ssh().argv("here", python, len(source), "mark")[-1]
    words = b"".join(json.dumps(request).encode() + b"\n" for request in requests)
    done = subprocess.run(
        ["sh", "-c", line], input=source + words, capture_output=True, timeout=30, check=True
    )
    lines = [text.removeprefix("mark ") for text in done.stdout.decode().splitlines()]
    return [answer for answer in map(json.loads, lines) if "at" not in answer]


def test_the_probe_tells_what_this_machine_has(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    request = {
        "ask": "facts",
        "cwd": str(tmp_path),
        "env": {"PYTHONPATH": str(Path(session.__file__).parents[3])},
        "files": ["file", "none"],
        "folders": ["no/such/folder"],
        "marker": "out",
        "port": 0,
        "token": "t0",
    }
    way = {
        "ask": "pairs",
        "targets": [["b", "127.0.0.1", 1]],
        "token": "t0",
        "timeout_s": 1,
        "marker": str(tmp_path / ".ds-llama-check-t0"),
    }
    facts, pairs = probe(request, way)
    found = answers.parse(Facts, facts["answer"])
    assert set(found.versions) >= {"torch", "deepspeed", "ds_llama"}
    assert "launcher/check/probe/main.py" in found.package
    assert found.files["none"] is None
    assert found.files["file"] is not None
    assert found.folders["no/such/folder"].at == str(tmp_path)
    assert found.memory.total_bytes >= found.memory.available_bytes > 0
    assert found.marker is not None
    assert found.marker.path == way["marker"]
    answer = {"reached": {"b": {"error": "Connection refused"}}, "seen": True}
    assert pairs["answer"] == answer
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]  # it has cleaned up


def test_a_request_that_fails_is_answered() -> None:
    [answer] = probe({"ask": "facts"})
    assert answer == {"failed": "KeyError: 'env'"}


def test_an_old_python_can_read_the_probe(repository: Path) -> None:
    own = "ds_llama.launcher.check.probe"
    for path in (repository / "ds_llama/launcher/check/probe").glob("*.py"):
        tree = ast.parse(path.read_text(), feature_version=(3, 6))
        for node in ast.walk(tree):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [str(node.module)]
            for name in names:
                assert name.startswith(own) or name.split(".")[0] in sys.stdlib_module_names
                assert name != "__future__"  # 3.6 has no annotations from there
            assert not isinstance(node, ast.NamedExpr)
        assert "capture_output" not in path.read_text()


def test_a_python_that_is_not_there_is_replaced_by_another() -> None:
    [answer] = probe({"ask": "ping"}, python="/no/such/python")
    found = answer["answer"]
    assert isinstance(found, dict)
    assert found["at"] != "/no/such/python"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"nonsense", "it answers something that is not JSON"),
        (b"[" * 100_000, "it answers something that is not JSON"),
        (b"[1]", "it answers no JSON object"),
    ],
)
def test_answers_that_are_none(line: bytes, message: str) -> None:
    with pytest.raises(BadAnswer) as caught:
        answers.read(line)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("content", "where"),
    [
        ({"port": "80"}, "port"),
        ({"port": 65536}, "port"),
        ({"cores": -1}, "cores"),
        ({"cores": 10**30}, "cores"),
        ({"more": 1}, "more"),
        ({"memory": {"total_bytes": 1}}, "memory.available_bytes"),
        ({"locks": [{"path": "x", "age_s": float("nan"), "held": True}]}, "locks.0.age_s"),
        ({"host_name": "x" * 5000}, "host_name"),
    ],
)
def test_answers_of_another_form(content: object, where: str) -> None:
    with pytest.raises(BadAnswer) as caught:
        answers.parse(Facts, content)
    assert str(caught.value) == f"its answer is not what was asked for: {where}"


@given(st.text())
def test_no_text_of_a_host_steers_a_terminal(text: str) -> None:
    found = answers.parse(Facts, {"host_name": text[:4096], "files": {text[:4096]: None}})
    assert found.host_name.isprintable()
    assert all(path.isprintable() for path in found.files)

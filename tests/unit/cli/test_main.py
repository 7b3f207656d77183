"""Exit codes and the three lines, as scripts see them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer

from ds_llama import errors
from ds_llama.cli import commands, outcome
from ds_llama.cli.main import main

HEAVY = {"torch", "deepspeed", "transformers", "numpy", "pydantic", "typer", "rich"}


@pytest.fixture
def probe(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A command `ds-llama probe`, whose function the test gives as `probe.command`."""
    module = ModuleType("ds_llama.cli.probe")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    entry = commands.Entry("probe", "probe", "a command of the tests")
    monkeypatch.setattr(commands, "available", lambda: {"probe": entry})
    return module


def raising(error: BaseException) -> Any:
    def command() -> None:
        raise error

    return command


def run(code: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **env}
    )


def test_help_names_every_command_and_imports_nothing_heavy() -> None:
    code = (
        "import sys; from ds_llama.cli.main import main; code = main(['--help']); "
        f"print(sorted({HEAVY} & set(sys.modules)), code)"
    )
    lines = run(code).stdout.splitlines()
    assert lines[-1] == "[] 0"
    listed = {line.split("  ")[1] for line in lines if line.startswith("  ")}
    assert set(commands.available()) <= listed


def test_help_takes_less_than_half_a_second() -> None:
    def seconds() -> float:
        start = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "ds_llama", "--help"], check=True, capture_output=True
        )
        return time.perf_counter() - start

    assert min(seconds() for _ in range(5)) < 0.5


def test_the_commands_of_the_help_can_all_be_loaded() -> None:
    for entry in commands.available().values():
        assert commands.load(entry).name is not None


def test_every_command_module_is_listed(repository: Path) -> None:
    """A command file that the table forgets would never be seen."""
    public = {"command", "app"}
    for path in (repository / "ds_llama" / "cli").glob("*.py"):
        text = path.read_text()
        if any(f"\ndef {name}(" in text or f"\n{name} = typer" in text for name in public):
            assert path.stem in {entry.module for entry in commands.available().values()}


def test_no_arguments_print_the_help_and_are_a_wrong_call(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main([]) == 2
    assert capsys.readouterr().out.startswith("Usage: ds-llama")


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert names == ["ds_llama", "deepspeed", "torch", "Python"]


@pytest.mark.parametrize(
    ("arguments", "what", "remedy"),
    [
        (["trian"], "there is no command 'trian'", "did you mean `ds-llama train`?"),
        (["qqq"], "there is no command 'qqq'", "see `ds-llama --help`"),
        (["--wrong"], "there is no option before the command '--wrong'", "see `ds-llama --help`"),
    ],
)
def test_an_unknown_command(
    arguments: list[str], what: str, remedy: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err == f"error: {what}\nwhere: command line\nremedy: {remedy}\n"
    assert captured.out == ""


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["init"], "Missing argument 'DIR'"),
        (["init", "a", "b"], "Got unexpected extra argument"),
        (["init", "--no-such"], "No such option: --no-such"),
    ],
)
def test_a_wrong_call_of_a_command(
    arguments: list[str], what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    error, where, remedy = capsys.readouterr().err.splitlines()
    assert error.startswith(f"error: {what}")
    assert where == "where: ds-llama init"
    assert remedy == "remedy: see `ds-llama init --help`"


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (errors.CallError, 2),
        (errors.ConfigError, 1),
        (errors.ModelError, 1),
        (errors.DataError, 1),
        (errors.CheckpointError, 1),
        (errors.MachineError, 1),
        (errors.RunError, 1),
    ],
)
def test_our_own_errors(
    kind: type[errors.DsLlamaError],
    code: int,
    probe: ModuleType,
    capsys: pytest.CaptureFixture[str],
) -> None:
    probe.command = raising(kind("it is so", where="file:key", remedy="do that"))
    assert main(["probe"]) == code
    captured = capsys.readouterr()
    assert captured.err == "error: it is so\nwhere: file:key\nremedy: do that\n"
    assert captured.out == ""


def test_several_errors_are_all_printed(
    probe: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    several = [errors.ConfigError(word, where="w", remedy="r") for word in ("one", "two")]
    probe.command = raising(errors.ConfigErrors(several))
    assert main(["probe"]) == 1
    blocks = capsys.readouterr().err.split("\n\n")
    assert [block.splitlines()[0] for block in blocks] == ["error: one", "error: two"]


@pytest.mark.parametrize("arguments", [["--debug", "probe"], ["probe", "--debug"]])
def test_debug_adds_a_traceback(
    arguments: list[str], probe: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    probe.command = raising(errors.RunError("it is so", where="w", remedy="r"))
    assert main(arguments) == 1
    printed = capsys.readouterr().err
    assert printed.startswith("Traceback (most recent call last)")
    assert printed.endswith("error: it is so\nwhere: w\nremedy: r\n")


def test_a_bug_of_ours_is_said_to_be_one(
    probe: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    probe.command = raising(KeyError("lost"))
    assert main(["probe"]) == 1
    error, where, remedy = capsys.readouterr().err.splitlines()
    assert error == "error: ds-llama failed in a way it does not know (KeyError: 'lost')"
    assert where.startswith("where: ds_llama/cli/main.py:")
    assert remedy.startswith("remedy: run again with --debug for the traceback, and report it")


def test_a_bug_on_a_rank_names_the_rank(
    probe: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "3")
    probe.command = raising(RuntimeError("lost"))
    assert main(["probe"]) == 1
    assert "\nwhere: rank 3, ds_llama/cli/main.py:" in capsys.readouterr().err


def test_what_all_ranks_say_is_said_once(
    probe: ModuleType,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("DS_LLAMA_LAUNCH", str(tmp_path))
    probe.command = raising(errors.RunError("the same", where="w", remedy="r"))
    for rank in range(3):
        monkeypatch.setenv("RANK", str(rank))
        assert main(["probe"]) == 1
    assert capsys.readouterr().err.count("error: the same") == 1


def test_a_rank_that_another_one_took_along_does_not_repeat_it(
    probe: ModuleType,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("DS_LLAMA_LAUNCH", str(tmp_path))
    lost = raising(RuntimeError("[pair.cc:553] Connection closed by peer [127.0.0.1]:33157"))
    for rank, command, said in (
        (1, lost, "error: another rank has gone"),  # rank 0 was killed: nobody said why
        (0, raising(errors.RunError("the disk is full", where="w", remedy="r")), "error: the disk"),
        (2, lost, ""),
        (2, raising(RuntimeError("another")), "error: ds-llama failed"),
    ):
        if said.startswith("error: the"):
            for mark in tmp_path.glob("said-*"):
                mark.unlink()
        monkeypatch.setenv("RANK", str(rank))
        probe.command = command
        assert main(["probe"]) == 1
        assert capsys.readouterr().err[: len(said) or None] == said


def test_a_rank_that_finished_says_so(
    probe: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DS_LLAMA_LAUNCH", str(tmp_path))
    monkeypatch.setenv("RANK", "1")
    probe.command = raising(errors.RunError("no", where="w", remedy="r"))
    assert main(["probe"]) == 1
    assert not (tmp_path / "finished-1").exists()
    probe.command = lambda: None
    assert main(["probe"]) == 0
    assert (tmp_path / "finished-1").exists()


def test_the_system_refuses(probe: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    probe.command = raising(OSError(28, "No space left on device", "/data/run"))
    assert main(["probe"]) == 1
    error, where, _ = capsys.readouterr().err.splitlines()
    assert (error, where) == ("error: No space left on device", "where: /data/run")


HOST_IS_FULL = "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 3"


@pytest.mark.parametrize(
    ("error", "what"),
    [(MemoryError(), "MemoryError"), (RuntimeError(HOST_IS_FULL), f"RuntimeError: {HOST_IS_FULL}")],
)
def test_memory_runs_out(
    error: Exception, what: str, probe: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    probe.command = raising(error)
    assert main(["probe"]) == 1
    assert capsys.readouterr().err.startswith(f"error: out of memory ({what})\n")


@pytest.mark.parametrize(("given", "code"), [(None, 0), (0, 0), (1, 1), (130, 130)])
def test_a_command_returns_its_exit_code(given: int | None, code: int, probe: ModuleType) -> None:
    probe.command = lambda: given
    assert main(["probe"]) == code


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (KeyboardInterrupt(), 130),
        (outcome.Terminated(), 143),
        (typer.Exit(5), 5),
        (SystemExit(4), 4),
        (SystemExit(None), 0),
        (BrokenPipeError(), 141),
    ],
    ids=repr,
)
def test_ways_to_leave_that_say_nothing(
    error: BaseException, code: int, probe: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    probe.command = raising(error)
    # typer answers a closed pipe itself, with 1
    assert main(["probe"]) in ({code, 1} if isinstance(error, BrokenPipeError) else {code})
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "before",
    [["--local_rank=1"], ["--local-rank=1"], ["--local_rank", "1"], ["--local_rank=0", "--debug"]],
    ids=" ".join,
)
def test_the_launchers_rank_is_ignored(before: list[str], probe: ModuleType) -> None:
    seen = []
    probe.command = lambda word: seen.append(word)
    probe.command.__annotations__["word"] = str
    assert main([*before, "probe", "x"]) == 0
    assert seen == ["x"]


def test_debug_after_two_dashes_is_the_commands_own(probe: ModuleType) -> None:
    seen = []
    probe.command = lambda words: seen.extend(words)
    probe.command.__annotations__["words"] = list[str]
    assert main(["probe", "--", "--debug"]) == 0
    assert seen == ["--debug"]


SLEEPER = """
import sys, time, types
from ds_llama.cli import commands
from ds_llama.cli.main import entry
module = types.ModuleType("ds_llama.cli.probe")
def command():
    try:
        print("ready", flush=True)
        {body}
    finally:
        print("unwound", file=sys.stderr, flush=True)
module.command = command
sys.modules[module.__name__] = module
commands.available = lambda: {{"probe": commands.Entry("probe", "probe", "")}}
sys.argv = ["ds-llama", "probe"]
entry()
"""


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_signals_unwind_and_give_128_plus_n(signum: signal.Signals) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SLEEPER.format(body="time.sleep(60)")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signum)
    _, printed = process.communicate(timeout=30)
    assert process.returncode == 128 + signum
    assert printed == "unwound\n"


def test_a_rank_that_waits_outside_of_python_ends_at_once() -> None:
    wait = "import ctypes; lock = ctypes.CDLL(None).pthread_mutex_lock"
    body = f"{wait}; mutex = ctypes.create_string_buffer(64); lock(mutex); lock(mutex)"
    process = subprocess.Popen(
        [sys.executable, "-c", SLEEPER.format(body=body)],
        env=os.environ | {"RANK": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.terminate()
    _, printed = process.communicate(timeout=10)
    assert (process.returncode, printed) == (-signal.SIGTERM, "")


def test_a_closed_pipe_is_quiet() -> None:
    body = "[print('x' * 1000) for _ in range(10000)]"
    process = subprocess.Popen(
        [sys.executable, "-c", SLEEPER.format(body=body)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline() == "ready\n"
    process.stdout.close()
    assert process.stderr.read() == "unwound\n"
    assert process.wait(timeout=30) != 0
    process.stderr.close()


def test_python_m_is_the_same() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ds_llama", "--local_rank=0", "nothing"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: there is no command 'nothing'\n")

"""Which commands there are, and how a command's module becomes something that can be called."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ds_llama.errors import CallError

if TYPE_CHECKING:
    import typer


class Entry(NamedTuple):
    """`module` holds `command`, a function that typer reads, or `app`, a typer.Typer of several."""

    name: str
    module: str
    help: str


# The texts are here, not in the modules, so that `ds-llama --help` imports none of them.
_TABLE = (
    Entry("init", "init", "write configs, launch scripts and a first run into an empty folder"),
    Entry("train", "train", "train what a run JSON says"),
    Entry("lint", "lint", "check run JSONs and any DeepSpeed JSON"),
    Entry("plan", "plan", "what each ZeRO strategy costs, what fits, which to take and why"),
    Entry("simulate", "simulate", "the real engine over fake tensors, at any world size"),
    Entry("data", "data", "train a tokenizer, tokenize a corpus into shards, show a shard"),
    Entry("checkpoint", "checkpoint", "list, verify and prune checkpoints"),
    Entry("export", "export", "write a checkpoint as Hugging Face safetensors"),
    Entry("import", "importing", "read Hugging Face or Meta weights"),
    Entry("generate", "generate", "text from a checkpoint"),
    Entry("eval", "evaluate", "perplexity and task scores of a checkpoint"),
    Entry("bench", "bench", "run a benchmark case, each cell in a fresh process"),
    Entry("bench comm", "bench_comm", "time every collective by size on the links between ranks"),
    Entry("report", "report", "make a benchmark's report from its raw rows"),
    Entry("selftest", "selftest", "every stage and offload against a plain torch reference"),
    Entry("launch", "launch", "check the hosts of a hostfile; a hostfile from Slurm"),
)


def available() -> dict[str, Entry]:
    """The commands whose module is in the package, in the order of the help."""
    here = Path(__file__).parent
    return {entry.name: entry for entry in _TABLE if (here / f"{entry.module}.py").exists()}


def find(name: str) -> Entry:
    """The command of that name; CallError with the nearest one."""
    commands = available()
    if name in commands:
        return commands[name]
    near = difflib.get_close_matches(name, commands, n=1)
    kind = "option before the command" if name.startswith("-") else "command"
    raise CallError(
        f"there is no {kind} {name!r}",
        where="command line",
        remedy=f"did you mean `ds-llama {near[0]}`?" if near else "see `ds-llama --help`",
    )


def split(arguments: Sequence[str]) -> tuple[Entry, list[str]]:
    """The command that one or two words name, and what follows them; CallError for none."""
    two = " ".join(arguments[:2])
    words = 2 if len(arguments) > 1 and two in available() else 1
    return find(" ".join(arguments[:words])), list(arguments[words:])


def load(entry: Entry) -> Any:
    """The click command behind `entry`, whichever click this typer is built on."""
    import typer

    module = importlib.import_module(f"ds_llama.cli.{entry.module}")
    app: typer.Typer | None = getattr(module, "app", None)
    if app is None:
        app = typer.Typer(add_completion=False)
        app.command(name=entry.name)(module.command)
    return typer.main.get_command(app)


def complete(entry: Entry, arguments: Sequence[str]) -> list[str]:
    """`arguments` with a value for each option that stands without one and may.

    A command's module names those in `BARE`; typer knows none (it supports no `flag_value`).
    """
    bare = getattr(importlib.import_module(f"ds_llama.cli.{entry.module}"), "BARE", {})
    followed = zip(arguments, [*arguments[1:], "-"], strict=False)
    return [
        f"{word}={bare[word]}" if word in bare and following.startswith("-") else word
        for word, following in followed
    ]


def help_text() -> str:
    """What `ds-llama --help` prints."""
    commands = available()
    width = max((len(name) for name in commands), default=0)
    lines = [f"  {name:<{width}}  {entry.help}" for name, entry in commands.items()]
    return "\n".join(
        [
            "Usage: ds-llama [--debug] COMMAND …",
            "",
            "LLaMA under DeepSpeed ZeRO: what it costs, trained, proved and measured.",
            "",
            "Commands (`ds-llama COMMAND --help` says more):",
            *lines,
            "",
            "Options:",
            "  --debug    print a traceback with an error; before or after the command",
            "  --version  print the versions of ds_llama, deepspeed, torch and Python",
            "  --help     print this",
            "",
            "Exit codes: 0 done; 1 what was read is wrong, or the run failed; 2 the call is wrong;",
            "128+n ended by signal n.",
        ]
    )

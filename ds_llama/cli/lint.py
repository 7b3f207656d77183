"""`ds-llama lint`: what is wrong, idle or slow in run JSONs and DeepSpeed JSONs."""

from __future__ import annotations

import json as jsons
import os
import shutil
import sys
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from ds_llama.config.lint import Linter, Report
    from ds_llama.config.problems import Problem

# Options that may stand alone, and what they then mean (commands.complete).
BARE = {"--explain": "", "--schema": "deepspeed"}


class Dialect(str, Enum):
    """Who reads the DeepSpeed JSON: a plain script, or the Hugging Face Trainer."""

    deepspeed = "deepspeed"
    huggingface = "huggingface"


class Schema(str, Enum):
    """Of what a JSON schema is wanted."""

    deepspeed = "deepspeed"
    run = "run"


class Device(str, Enum):
    """What the ranks compute on."""

    cuda = "cuda"
    cpu = "cpu"


def command(
    files: Annotated[
        list[Path] | None,
        typer.Argument(help='Run JSONs and DeepSpeed JSONs; "-" is standard input.'),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
    dialect: Annotated[
        Dialect, typer.Option(help='"huggingface" where the Trainer fills in "auto".')
    ] = Dialect.deepspeed,
    strict: Annotated[bool, typer.Option("--strict", help="Exit 1 for warnings too.")] = False,
    world_size: Annotated[
        int | None, typer.Option(min=1, help="Check the batch for this many ranks.")
    ] = None,
    device: Annotated[
        Device | None, typer.Option(help="Report what does not run there.", show_default=False)
    ] = None,
    fix: Annotated[
        bool, typer.Option("--fix", help="Write FILE.fixed.json, and show the difference.")
    ] = False,
    output: Annotated[
        Path | None, typer.Option(help="With --fix: where to write it.", show_default=False)
    ] = None,
    in_place: Annotated[
        bool, typer.Option("--in-place", help="With --fix: overwrite the file itself.")
    ] = False,
    explain: Annotated[
        str | None,
        typer.Option(help="Tell the story of a code; alone, list all codes.", show_default=False),
    ] = None,
    schema: Annotated[
        Schema | None,
        typer.Option(help="Print a JSON schema for editors.", show_default=False),
    ] = None,
) -> int:
    """Check run JSONs and any DeepSpeed JSON: exit 0 clean, 1 errors, 2 not a JSON object."""
    if explain is not None:
        return _explain(explain)
    if schema is not None:
        return _schema(Schema(schema).value, _dialect(dialect))
    from ds_llama.config.lint import Linter

    linter = Linter(
        _dialect(dialect),
        world_size,
        Device(device).value if device else None,
        sys.stdin.read,
    )
    _check_call(files or [], fix, output, in_place)
    if fix:
        return _fix(linter, files or [], output, in_place=in_place, strict=strict, json=json)
    reports = [linter.report(path) for path in files or []]
    if json:
        print(jsons.dumps({"files": [report.to_dict() for report in reports]}, indent=2))
    else:
        _say("\n".join(text(report) for report in reports))
    return exit_code(reports, strict)


def exit_code(reports: list[Report], strict: bool) -> int:
    """2 when something could not be read, 1 for errors (or warnings, if `strict`), else 0."""
    if not all(report.readable for report in reports):
        return 2
    return int(any(r.count("error") or (strict and r.count("warning")) for r in reports))


def text(report: Report) -> str:
    """A report as a person reads it: the worst first."""
    errors, warnings = report.count("error"), report.count("warning")
    summary = f"{errors} error{'s' * (errors != 1)}, {warnings} warning{'s' * (warnings != 1)}"
    lines = [f"{report.path}: {summary if report.problems else 'clean'}"]
    problems, more = _gathered(report.problems)
    if more:
        lines.append(
            '  hint: "auto" is for the Hugging Face Trainer; check its files with '
            "--dialect huggingface"
        )
    for problem in sorted(problems, key=lambda problem: problem.severity):
        place = f"{report.path}:{problem.key}" if problem.key else str(report.path)
        lines += [
            f"  {problem.severity} [{problem.code}] {place}",
            f"    {problem.message}",
            f"    remedy: {problem.remedy}",
        ]
    return "\n".join(_printable(line) for line in lines)


def _gathered(problems: list[Problem]) -> tuple[list[Problem], bool]:
    """One problem for the many places of "auto" in a file that is another program's."""
    autos = [problem for problem in problems if problem.code == "auto-value"]
    if len(autos) < 2:
        return problems, False
    keys = ", ".join(problem.key for problem in autos[1:])
    first = replace(autos[0], message=f"{autos[0].message} (also at {keys})")
    return [first, *(problem for problem in problems if problem not in autos)], True


def _say(text: str) -> None:
    """Print what may hold any character: neither the terminal nor its encoding minds."""
    encoding = sys.stdout.encoding or "utf-8"
    if text:
        print(text.encode(encoding, "backslashreplace").decode(encoding))


def _printable(line: str) -> str:
    return "".join(c if c.isprintable() or c == "\t" else ascii(c)[1:-1] for c in line)


def _check_call(files: list[Path], fix: bool, output: Path | None, in_place: bool) -> None:
    from ds_llama.errors import CallError

    def wrong(what: str, remedy: str) -> CallError:
        return CallError(what, where="command line", remedy=remedy)

    if not files:
        raise wrong("no file is named", "name run JSONs or DeepSpeed JSONs, or - for stdin")
    if (output or in_place) and not fix:
        raise wrong("--output and --in-place belong to --fix", "add --fix, or leave them out")
    if output and in_place:
        raise wrong("--output and --in-place together", "keep one of them")
    if output and len(files) > 1:
        raise wrong(f"one --output for {len(files)} files", "fix them one by one")
    if fix and output is None and Path("-") in files:
        raise wrong("--fix of standard input has nowhere to go", "add --output FILE")


def _fix(
    linter: Linter,
    files: list[Path],
    output: Path | None,
    *,
    in_place: bool,
    strict: bool,
    json: bool,
) -> int:
    """Write what can be fixed, print the difference, then what is left for a person."""
    from ds_llama.config.fixes import fix_file

    reports, documents = [], []
    for path in files:
        fixed = fix_file(linter, path)
        target = output or (path if in_place else path.with_suffix(".fixed.json"))
        if fixed.applied:
            ends = "\r\n" if str(path) != "-" and b"\r\n" in path.read_bytes() else "\n"
            _write(target, fixed.text, ends, over=in_place)
        reports.append(fixed.report)
        written = str(target) if fixed.applied else None
        applied = [problem.to_dict() for problem in fixed.applied]
        documents.append(fixed.report.to_dict() | {"applied": applied, "written": written})
        if not json:
            _say("\n".join(_printable(line) for line in fixed.difference(target)))
            said = f"{len(fixed.applied)} fixed, written to {target}" if written else "no fix"
            _say(f"{path}: {said}; what is left:\n{text(fixed.report)}")
    if json:
        print(jsons.dumps({"files": documents}, indent=2))
    return exit_code(reports, strict)


def _write(path: Path, content: str, ends: str, *, over: bool) -> None:
    """ends: what ends a line. over: the file is the only copy there is, so it is replaced when the
    new one is whole."""
    from ds_llama.errors import CallError

    real = path.resolve() if over else path
    new = real.with_name(f".{real.name}.new") if over else real
    try:
        new.write_text(content, encoding="utf-8", newline=ends)
        if over:
            shutil.copymode(real, new)
            os.replace(new, real)
    except OSError as error:
        raise CallError(
            f"cannot be written: {(error.strerror or str(error)).lower()}",
            where=str(path),
            remedy="name another place with --output",
        ) from None


def _explain(code: str) -> int:
    from ds_llama.config import explain

    print(explain.story(code).text() if code else explain.listing())
    return 0


def _dialect(dialect: Dialect) -> Literal["deepspeed", "huggingface"]:
    return "huggingface" if Dialect(dialect) is Dialect.huggingface else "deepspeed"


def _schema(which: str, dialect: Literal["deepspeed", "huggingface"]) -> int:
    from ds_llama.config import jsonschema

    schema = jsonschema.of_run() if which == "run" else jsonschema.of_deepspeed(dialect)
    print(jsons.dumps(schema, indent=2))
    return 0

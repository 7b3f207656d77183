"""The preflight: ask every host, and say what is wrong."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ds_llama.config.run import Run
from ds_llama.launcher import envfile
from ds_llama.launcher.check import findings, together
from ds_llama.launcher.check.answers import Heard
from ds_llama.launcher.check.findings import Expected
from ds_llama.launcher.check.gather import Inquiry, gather
from ds_llama.launcher.check.limits import Limits
from ds_llama.launcher.check.probe import facts as here
from ds_llama.launcher.check.problems import ALL, Problem
from ds_llama.launcher.check.reach import Reach, ssh
from ds_llama.launcher.check.wants import Wants, need, wants
from ds_llama.launcher.hostfile import Host
from ds_llama.launcher.job import module_path

# What of a run's environment changes what a host is asked; the rest is the ranks' own.
_ASKED = ("TORCH_EXTENSIONS_DIR", "XDG_CACHE_HOME")


@dataclass(frozen=True)
class Report:
    """What was heard and what is wrong of it; `allreduce` is None where it was not tried."""

    heard: tuple[Heard, ...]
    problems: tuple[Problem, ...]
    took_s: float
    allreduce: Mapping[str, Any] | None = None

    @property
    def ok(self) -> bool:
        """Whether nothing is an error."""
        return not any(problem.severity == "error" for problem in self.problems)

    def to_dict(self) -> dict[str, Any]:
        bad = {problem.host for problem in self.problems if problem.severity == "error"}
        hosts = [
            {"name": one.host.name, "ok": one.host.name not in bad, "facts": _facts(one)}
            for one in self.heard
        ]
        return {
            "hosts": hosts,
            "problems": [problem.to_dict() for problem in self.problems],
            "allreduce": self.allreduce,
            "took_s": round(self.took_s, 3),
        }


def preflight(
    hosts: Sequence[Host],
    run: Run | None = None,
    *,
    reach: Reach | None = None,
    master_port: int = 0,
    python: str = sys.executable,
    environ: Mapping[str, str] | None = None,
    allreduce: bool = False,
) -> Report:
    """Ask all of `hosts` at once, at most 10 s, and judge what they say. Nothing is changed there.

    allreduce: where nothing is an error, have all ranks add up, at most 20 s more. DS_LLAMA_CHECK_S
    in `environ` is taken in the place of the 10 s, and twice that in the place of the 20 s.

    run: compared with what it needs, too. reach: how a program is run on a host; over ssh when not
    given. master_port: must be free on the first host; 0 when any will do. Raises ConfigErrors when
    the run does not fit the number of ranks, and what `envfile.environment` raises.
    """
    environ = os.environ if environ is None else environ
    env = envfile.environment(environ)
    wanted = None if run is None else wants(run)
    inquiry = _inquiry(python, env, wanted, master_port)
    began = time.monotonic()
    limits = Limits.of(environ)
    reach = reach or ssh(limits=limits)
    heard = gather(hosts, reach, inquiry, limits)
    took_s = time.monotonic() - began
    on_cpu = env.get("DS_ACCELERATOR") == "cpu" or findings.on_cpu(heard)
    expected = _expected(inquiry, env, wanted, on_cpu=on_cpu)
    if run is not None and run.architecture is not None:
        ranks = sum(host.slots for host in hosts)
        expected = replace(expected, need=need(run, ranks, "cpu" if on_cpu else "cuda"))
    report = Report(tuple(heard), tuple(findings.problems(heard, expected)), took_s)
    return _together(report, hosts, reach, python, limits) if allreduce and report.ok else report


def _together(
    report: Report, hosts: Sequence[Host], reach: Reach, python: str, limits: Limits
) -> Report:
    argv: Sequence[str] = together.RUNNER
    if reach.all_ranks is not None:
        argv = reach.all_ranks(hosts, (python, "-m", together.MODULE))
    found = together.add_up(hosts, argv=argv, limit_s=limits.allreduce_s)
    problems = report.problems
    if not found["ok"]:
        message = f"the ranks do not add up: {found['error']}"
        remedy = "see what a firewall lets through, and GLOO_SOCKET_IFNAME or NCCL_DEBUG=INFO"
        problems = (*problems, Problem("allreduce", "error", ALL, message, remedy))
    return replace(report, problems=problems, allreduce=found)


def _inquiry(
    python: str, env: Mapping[str, str], wanted: Wants | None, master_port: int
) -> Inquiry:
    folders = (tempfile.gettempdir(),)
    asked = {name: env[name] for name in _ASKED if name in env}
    return Inquiry(
        python=python,
        cwd=os.getcwd(),
        env={**asked, "PYTHONPATH": os.pathsep.join(module_path(env))},
        files=() if wanted is None else wanted.read,
        folders=folders if wanted is None else (*folders, wanted.output, *wanted.nvme),
        output=None if wanted is None else wanted.output,
        port=master_port,
    )


def _expected(
    inquiry: Inquiry, env: Mapping[str, str], wanted: Wants | None, *, on_cpu: bool
) -> Expected:
    interface = "GLOO_SOCKET_IFNAME" if on_cpu else "NCCL_SOCKET_IFNAME"
    return Expected(
        python=inquiry.python,
        cwd=inquiry.cwd,
        package=here.package(),
        files={path: here.digest(path) for path in inquiry.files},
        on_cpu=on_cpu,
        interface=env.get(interface),
        port=inquiry.port,
        output=inquiry.output,
        nvme=() if wanted is None else wanted.nvme,
        ops=() if wanted is None else wanted.ops,
    )


def _facts(one: Heard) -> dict[str, Any] | None:
    """For `--json`: all but the digest of every file, which are of no use to a reader."""
    if one.facts is None:
        return None
    found = one.facts.model_dump(exclude={"package", "cwd_error", "port_error", "marker"})
    found["slots"] = one.host.slots
    found["python"] = None if one.ping is None else ".".join(map(str, one.ping.python))
    found["clock_ahead_s"] = None if one.clock is None else one.clock.ahead_s
    found["reached"] = {} if one.pairs is None else one.pairs.model_dump()["reached"]
    return found

"""`python -m ds_llama.launcher.mpi_rank … MODULE ARGUMENT…`: one rank under mpirun.

It compiles ops, tells the rank who it is, as deepspeed.launcher.launch does for its own (no mpi4py
is needed for that), stays above it, and ends as it ends.

mpirun passes SIGUSR1 on and nothing else in time: it kills ranks that were to save first, 2 s (Open
MPI) or no time (MPICH) after a SIGTERM. So SIGUSR1 to mpirun is SIGTERM to the rank.

Hydra, MPICH's, ends the others when a rank is killed by a signal and not when it exits with an
error, and DeepSpeed's own helper for it drops the exit code altogether
(deepspeed/launcher/launcher_helper.py:104): a failure is an abort on PMI's wire here.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress

from ds_llama.errors import DsLlamaError
from ds_llama.launcher import failure, ops, routes
from ds_llama.launcher.child import Child, open_log, shown
from ds_llama.launcher.environment import rank_environment
from ds_llama.launcher.orphan import SUPERVISOR, die_with_parent
from ds_llama.launcher.status import exit_code

# Names of rank, size, local rank, local size: Open MPI's, then Hydra's.
_OPENMPI = tuple(f"OMPI_COMM_WORLD_{word}" for word in ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE"))
_HYDRA = ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the module as a child; its exit code, 128 + n for signal n."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    for name in ("--world_info", "--master_addr", "--master_port", "--ops", "--logs"):
        parser.add_argument(name, required=True)
    parser.add_argument("module")
    parser.add_argument("arguments", nargs=argparse.REMAINDER)
    args = parser.parse_args(argv)
    world: dict[str, list[int]] = json.loads(base64.urlsafe_b64decode(args.world_info))
    found = place(os.environ, world)
    found.update(MASTER_ADDR=args.master_addr, MASTER_PORT=args.master_port)
    child = Child()
    die_with_parent()
    try:
        ops.build(filter(None, args.ops.split(",")))
    except DsLlamaError as error:
        print(error, file=sys.stderr)
        code = error.exit_code
    else:
        words = [sys.executable, "-u", "-m", args.module, *args.arguments]
        host = list(world)[int(found["CROSS_RANK"])]
        code = _run(child, words, _environment(found, list(world)), args.logs, host)
    if code:
        abort(code)
    return code


def _run(child: Child, words: Sequence[str], env: dict[str, str], logs: str, host: str) -> int:
    """What it prints is kept in its log; the first rank's is shown too, of others how they failed.

    mpirun ends all when it is told of a failure, so that is said before.
    """
    if not logs:
        return exit_code(child.run(words, env))
    rank = int(env["RANK"])
    with open_log(logs, env["RANK"]) as log:
        output = shown(log) if rank == 0 else nullcontext(log.fileno())
        with output as descriptor:
            code = exit_code(child.run(words, env, output=descriptor))
    if code and not child.asked:
        print("\n".join(_last_words(rank, host, code, log.name)), file=sys.stderr, flush=True)
    return code


def _last_words(rank: int, host: str, code: int, log: str) -> list[str]:
    """Of a rank that failed; one that only lost another is a line."""
    found = failure.of_rank(host, rank, code, log=log)
    if found.is_echo:
        return [f"{found.what}: another rank was gone; log {host}:{log}"]
    tail = found.tail.splitlines()[-failure.TAIL_LINES :] if rank else []
    lines = [f"the last lines of rank {rank} on {host}:", *(f"  {line}" for line in tail)]
    said = [f"error: {found.what}", f"where: {host}:{log}", f"remedy: {found.remedy}"]
    return [*(lines if tail else []), *said]


def _environment(found: Mapping[str, str], hosts: Sequence[str]) -> dict[str, str]:
    env = rank_environment(int(found["LOCAL_SIZE"]))
    if len(hosts) > 1:
        # By another host's name: its own may mean the loopback (127.0.1.1 on Debian).
        env.update(routes.for_collectives(hosts[0 if int(found["CROSS_RANK"]) else 1], env))
    else:
        env.setdefault("GLOO_SOCKET_IFNAME", "lo")
    return {**env, **found, SUPERVISOR: str(os.getpid())}


def place(environ: Mapping[str, str], world: Mapping[str, Sequence[int]]) -> dict[str, str]:
    """What a rank must know, from what mpirun says and from the devices of each host, in order.

    Raises SystemExit when mpirun put the rank elsewhere than `world` has it.
    """
    names = next((four for four in (_OPENMPI, _HYDRA) if four[0] in environ), None)
    if names is None:
        raise SystemExit("error: no mpirun of Open MPI or MPICH has started this process")
    rank, size, local, per_host = (int(environ[name]) for name in names)
    places = [(node, i) for node, host in enumerate(world) for i in range(len(world[host]))]
    if size != len(places) or places[rank][1] != local:
        raise SystemExit(
            f"error: mpirun made rank {rank} of {size} number {local} on its host, which is not "
            f"what the hostfile says: {json.dumps({host: len(ids) for host, ids in world.items()})}"
        )
    node = places[rank][0]
    devices = list(world.values())[node]
    if per_host != len(devices):
        raise SystemExit(f"error: mpirun put {per_host} ranks on host {node}, not {len(devices)}")
    return {
        "RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_RANK": str(local),
        "LOCAL_SIZE": str(per_host),
        "CROSS_RANK": str(node),
        "CROSS_SIZE": str(len(world)),
        "CUDA_VISIBLE_DEVICES": ",".join(map(str, devices)),
    }


def abort(code: int) -> None:
    """Have Hydra end the other ranks and exit with `code`; without Hydra nothing.

    PMI's simple wire protocol, of which this is the one command that needs no answer.
    """
    descriptor = os.environ.get("PMI_FD", "")
    if descriptor.isdigit():
        with suppress(OSError):
            os.write(int(descriptor), b"cmd=abort exitcode=%d\n" % code)


if __name__ == "__main__":
    sys.exit(main())

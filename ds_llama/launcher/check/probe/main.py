"""One JSON request a line comes in, answers go out one a line.

    ping    the clock, and which Python this is
    facts   what this host has; a listener is opened, on the first host a file is written
    pairs   connects to every other host's listener, looks for that file

Each answer stands behind a mark, since a shell's start-up files may print too; {"at": …} says what
comes next, for whoever waits in vain. Ends with its stdin or after `_LIFE_S`, and takes along what
it has made.
"""

import contextlib
import json
import os
import signal
import socket
import sys
import threading
import time
from typing import Any

from ds_llama.launcher.check.probe import facts, network

_LIFE_S = 120  # whoever asks is gone before


class Probe:
    """What this process has made, and the three requests."""

    def __init__(self, mark: str) -> None:
        self.mark = mark
        self.marker = None  # type: str | None

    def say(self, answer: "dict[str, object]") -> None:
        sys.stdout.write(self.mark + " " + json.dumps(answer) + "\n")
        sys.stdout.flush()

    def ping(self, request: "dict[str, Any]") -> "dict[str, object]":
        return {"time_s": time.time(), "python": list(sys.version_info[:3]), "at": sys.executable}

    def facts(self, request: "dict[str, Any]") -> "dict[str, object]":
        """What this host has; relative paths are of `cwd`, where the ranks start too."""
        os.environ.update(request["env"])
        try:
            os.chdir(request["cwd"])
        except OSError as error:
            return {"cwd_error": error.strerror or str(error)}
        inserted = os.environ.get("PYTHONPATH", "")
        sys.path[:0] = [os.getcwd(), *filter(None, inserted.split(os.pathsep))]
        found = {"host_name": socket.gethostname(), "machine": network.machine()}  # type: Any
        for name, ask in (
            ("versions", facts.versions),
            ("package", facts.package),
            ("memory", facts.memory),
            ("devices", facts.devices),
            ("locks", facts.locks),
            ("ops", facts.ops),
            ("runs", facts.runs),
            ("interfaces", network.interfaces),
            ("address", network.own_address),
        ):
            self.say({"at": "its " + name})
            found[name] = ask()
        found["cores"] = len(os.sched_getaffinity(0))
        for name, one, paths in (
            ("files", facts.digest, request["files"]),
            ("folders", facts.folder, [*request["folders"], facts.extensions()]),
        ):
            answers = {}
            for path in paths:
                self.say({"at": path})
                answers[path] = one(path)
            found[name] = answers
        if request["marker"]:
            found["marker"] = self.write_marker(request["marker"], request["token"])
        listener = network.Listener(request["port"], request["token"])
        found["port"], found["port_error"] = listener.port, listener.error
        return dict(found)

    def write_marker(self, folder: str, token: str) -> "dict[str, str]":
        """Leave a file where the run will write; its path, or what went wrong."""
        place = str(facts.folder(folder)["at"])
        path = os.path.join(place, ".ds-llama-check-" + token)
        try:
            with open(path, "x") as file:
                self.marker = path
                file.write(token)
        except OSError as error:
            return {"error": error.strerror or str(error), "path": place}
        return {"path": path}

    def pairs(self, request: "dict[str, Any]") -> "dict[str, object]":
        """The way to each of `targets`, all at once; whether the first host's file is seen."""
        reached = {}  # type: dict[str, object]

        def ask(name: str, address: str, port: int) -> None:
            reached[name] = network.reach(address, port, request["token"], request["timeout_s"])

        threads = [
            threading.Thread(target=ask, args=target, daemon=True) for target in request["targets"]
        ]
        for thread in threads:
            thread.start()
        began = time.time()
        until = began + 2 * request["timeout_s"]
        for thread in threads:
            thread.join(max(0.0, until - time.time()))
        seen = None
        if request["marker"]:
            self.say({"at": request["marker"]})
            seen = facts.read(request["marker"]) == request["token"]
            while not seen and time.time() < began + request["timeout_s"]:
                time.sleep(0.1)  # a network file system may take its time
                seen = facts.read(request["marker"]) == request["token"]
        return {"reached": dict(reached), "seen": seen}

    def close(self) -> None:
        if self.marker is not None:
            with contextlib.suppress(OSError):
                os.unlink(self.marker)


def end(signum: int, frame: object) -> None:
    """Signal handler: as if stdin had ended."""
    raise SystemExit(1)


def main(mark: str) -> None:
    """Answer until stdin ends."""
    for signum in (signal.SIGALRM, signal.SIGHUP, signal.SIGTERM):
        signal.signal(signum, end)
    signal.alarm(_LIFE_S)
    probe = Probe(mark)
    asks = {"ping": probe.ping, "facts": probe.facts, "pairs": probe.pairs}
    try:
        while True:
            line = sys.stdin.buffer.readline()
            if not line:
                return
            request = json.loads(line.decode())
            try:
                probe.say({"answer": asks[request["ask"]](request)})
            except Exception as error:  # whoever asked tells it; a traceback is of no use there
                probe.say({"failed": f"{type(error).__name__}: {error}"})
    finally:
        probe.close()

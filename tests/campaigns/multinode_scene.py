"""One run over two hosts in namespaces, ours or of plain `deepspeed`, that something happens to."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import zipfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from tests.campaigns.kill import curve, newest
from tests.multinode.cluster import Cluster

REPOSITORY = Path(__file__).parents[2]
SLOTS, SAVE_EVERY = (1, 2), 30
START_S, HANG_S = 200.0, 8.0

# Every Python of a run imports it: a rank does what is written in the file do-RANK.
SITECUSTOMIZE = """
import os, threading
def watch(path):
    import ctypes, time
    while not os.path.exists(path):
        time.sleep(0.01)
    word = open(path).read()
    if word == "exit":
        os._exit(3)
    kind = {"memory": MemoryError, "raise": ValueError}[word]
    thread = ctypes.c_ulong(threading.main_thread().ident)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, ctypes.py_object(kind))
folder, rank = os.environ.get("DS_CAMPAIGN"), os.environ.get("RANK")
if folder and rank:
    threading.Thread(target=watch, args=(f"{folder}/do-{rank}",), daemon=True).start()
"""

# What a careful user of DeepSpeed would write, and nothing of ds_llama.
PLAIN = """
import os, time, deepspeed, torch
from pathlib import Path
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
deepspeed.init_distributed("gloo", verbose=False)
folder, is_first = Path(os.environ["DS_CAMPAIGN"]), os.environ["RANK"] == "0"
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(512, 512), torch.nn.Linear(512, 512))
engine, *_ = deepspeed.initialize(
    model=model,
    optimizer=torch.optim.AdamW(model.parameters()),
    config={
        "train_micro_batch_size_per_gpu": 1,
        "bf16": {"enabled": True},
        "zero_optimization": {"stage": 2, "reduce_bucket_size": 10**6},
    },
)
step = 0
while True:
    loss = engine(torch.randn(1, 512, dtype=torch.bfloat16)).float().square().mean()
    engine.backward(loss)
    engine.step()
    step += 1
    if is_first:
        with open(folder / "steps", "a") as file:
            file.write(f"{step}\\n")
    if step % EVERY == 0:
        if is_first:
            (folder / "saving").touch()
        engine.save_checkpoint(str(folder / "out"), tag=f"step-{step}")
        if is_first:
            (folder / "saving").unlink()
    time.sleep(0.05)
"""


class Scene:
    """Not for more than one event. `words`: further ones of the command."""

    def __init__(
        self, cluster: Cluster, folder: Path, who: str, slots: Sequence[int] = SLOTS
    ) -> None:
        self.cluster, self.folder, self.who = cluster, folder, who
        folder.mkdir()
        self.hostfile = cluster.write_hostfile(slots, f"hostfile-{folder.name}")
        self.env = {"DS_CAMPAIGN": str(folder), "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
        self.env |= {"PYTHONPATH": f"{folder}:{REPOSITORY}", "WANDB_MODE": "offline"}
        self.env |= {"DS_LLAMA_CHECK_S": "60"}  # these hosts stand on one machine
        self.err = folder / "err"
        (folder / "sitecustomize.py").write_text(SITECUSTOMIZE)
        if who == "ours":
            (folder / "run.json").write_text(json.dumps(self._run()))
        else:
            (folder / "plain.py").write_text(PLAIN.replace("EVERY", str(SAVE_EVERY)))

    def start(self, master_port: int = 29500) -> None:
        """The command on the first host; the port is that of plain DeepSpeed, and its default."""
        if self.who == "ours":
            words = ["-m", "ds_llama", "train", "run.json", "--hostfile", str(self.hostfile)]
        else:
            lines = [f"{name}={value}\n" for name, value in self.env.items()]
            (self.folder / ".deepspeed_env").write_text("".join(lines))
            words = ["-m", "deepspeed.launcher.runner", "--hostfile", str(self.hostfile)]
            words += ["--master_port", str(master_port), "plain.py"]
        with self.err.open("w") as err:
            settings = {"env": self.env, "cwd": self.folder, "stdout": err, "stderr": err}
            self.top = self.cluster.start(0, sys.executable, *words, **settings)

    def _run(self) -> dict[str, object]:
        from ds_llama.selftest.tiny import MODEL, TOKENS

        return {
            "model": MODEL,
            "data": {"train": str(self.folder.parent / "shard"), "sequence_length": TOKENS},
            "optimizer": {"lr": 1e-3},
            "train": {"steps": 100_000, "global_batch_size": 6, "micro_batch_size": 1},
            "checkpoint": {"every_steps": SAVE_EVERY, "keep_last": 2, "export": False},
            "stability": {"hang_timeout_s": HANG_S},
            "deepspeed": "zero2",
            "output": str(self.folder / "out"),
        }

    def wait(self, true: Callable[[], bool], limit_s: float, every_s: float = 0.05) -> bool:
        """Whether it came true in time."""
        deadline = time.monotonic() + limit_s
        while not true():
            if time.monotonic() > deadline:
                return False
            time.sleep(every_s)
        return True

    def wait_for(self, moment: str) -> bool:
        """Whether it came to the middle of a save, or to the third step after one ("rest")."""
        if not self.wait(lambda: self.steps() >= 3 or self.is_over(), START_S) or self.is_over():
            return False
        self.wait(lambda: not self.is_saving(), START_S, 0.002)
        found = self.wait(self.is_saving, START_S, 0.002)
        if not found or moment == "save":
            return found
        self.wait(lambda: not self.is_saving(), START_S, 0.002)
        saved = self.steps()  # a rank may be in its last lines, for which a save's limit holds
        return self.wait(lambda: self.steps() >= saved + 3, START_S)

    def steps(self) -> int:
        """How many have been made."""
        with suppress(OSError, IndexError, ValueError):
            if self.who == "ours":
                return int(curve(self.folder / "out")[-1][0])
            return int((self.folder / "steps").read_text().split()[-1])
        return 0

    def is_saving(self) -> bool:
        """Whether a checkpoint is being written."""
        if self.who == "plain":
            return (self.folder / "saving").exists()
        return any((self.folder / "out/checkpoints").glob(".staging-*"))

    def resumes_at(self) -> int | None:
        """The step of the checkpoint that a restart would go on from; None: it could not.

        Ours: the newest complete one. DeepSpeed goes on from what the file `latest` names, whether
        it is whole or not.
        """
        if self.who == "ours":
            return newest(self.folder / "out/checkpoints") or 0
        latest = self.folder / "out/latest"
        if not latest.exists():
            return 0
        tag = self.folder / "out" / latest.read_text()
        parts = [f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt" for rank in range(3)]
        files = [tag / name for name in ("mp_rank_00_model_states.pt", *parts)]
        whole = all(file.exists() and zipfile.is_zipfile(file) for file in files)
        return int(tag.name.removeprefix("step-")) if whole else None

    def is_over(self) -> bool:
        """Whether the launcher has ended."""
        return self.top.poll() is not None

    def code(self) -> int | None:
        """The launcher's, as a shell has it; None while it runs."""
        code = self.top.poll()
        return 128 - code if code is not None and code < 0 else code

    def said(self) -> str:
        """The last that was printed."""
        lines = self.err.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else ""

    def mistake(self) -> str:
        """The first error that was printed, else the last line."""
        lines = self.err.read_text(errors="replace").splitlines()
        return next((line for line in lines if line.startswith("error: ")), self.said())

    def processes(self, *, own: bool = False) -> list[psutil.Process]:
        """All of all hosts that are up: nothing but runs is there. own: of this run alone."""
        hosts = range(self.cluster.count)
        found = [process for host in hosts for process in self.cluster.processes(host)]
        mark = f"DS_CAMPAIGN={self.folder}"
        return [each for each in found if not own or mark in variables(each)]

    def launch_py(self) -> psutil.Process:
        """DeepSpeed's part on the second host."""
        modules = {"ds_llama.launcher.node", "deepspeed.launcher.launch"}
        return next(p for p in self.cluster.processes(1) if modules & set(p.info["cmdline"]))

    def rank(self, rank: int) -> psutil.Process:
        """The process of a rank on the second host."""
        hosts = self.cluster.processes(1)
        return next(process for process in hosts if f"RANK={rank}" in variables(process))

    def tell(self, rank: int, word: str) -> None:
        """See SITECUSTOMIZE."""
        path = self.folder / "told"
        path.write_text(word)
        path.rename(self.folder / f"do-{rank}")

    def signal(self, *signums: signal.Signals) -> None:
        """To the launcher, one second apart."""
        for number, signum in enumerate(signums):
            time.sleep(1.0 if number else 0)
            self.cluster.signal(self.top, signum)


def variables(process: psutil.Process) -> list[str]:
    """The environment that a process was started with; none of one that has ended."""
    try:
        found = Path(f"/proc/{process.pid}/environ").read_bytes()
    except OSError:
        return []
    return [os.fsdecode(line) for line in found.split(b"\0")]

"""`ds-llama train` from the command line to the export, on the real launcher."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from ds_llama.cli.train import _is_finished
from ds_llama.config import load_run
from ds_llama.data import ShardWriter
from ds_llama.data.sampler import permute
from ds_llama.launcher.run import PATIENCE_S
from tests.campaigns import kill
from tests.end_to_end.conftest import STEPS, Workspace


@pytest.fixture(scope="module")
def trained(workspace: Workspace) -> Path:
    """A run of two processes at stage 2 in bf16, to its end."""
    workspace.run("train", workspace.write_run("trained"), "--nproc", "2", "--accounting")
    return workspace.folder / "runs" / "trained"


def test_one_row_a_step_with_every_metric(workspace: Workspace, trained: Path) -> None:
    rows = workspace.rows("trained")
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert rows[0]["loss"] == pytest.approx(math.log(400), abs=0.5)
    for row in rows:
        assert row["tokens_per_s"] == pytest.approx(2 * row["tokens_per_s_per_device"])
        assert row["mfu"] is None  # the peak of this device is not in the table
        assert row["clip_coef"] == pytest.approx(min(1, 1 / (row["grad_norm"] + 1e-6)), rel=1e-5)
    assert rows[-1]["tokens_seen"] == STEPS * 8 * 63
    assert [row["step"] for row in rows if "validation_loss" in row] == [3, 6]


def test_the_loader_keeps_up(workspace: Workspace, trained: Path) -> None:
    """A rank's step reads 2 KB of tokens, and waits less than one percent of itself for them."""
    waited = sorted(row["data_wait_s"] / row["step_s"] for row in workspace.rows("trained"))
    assert waited[len(waited) // 2] < 0.01


def test_resolved_files_hold_every_value(trained: Path) -> None:
    run = json.loads((trained / "run.json").read_text())
    deepspeed = json.loads((trained / "deepspeed.json").read_text())
    assert "auto" not in json.dumps(run) + json.dumps(deepspeed)
    assert deepspeed["train_batch_size"] == 8
    assert deepspeed["gradient_accumulation_steps"] == 2
    assert deepspeed["gradient_clipping"] == 1.0
    assert deepspeed["data_types"]["grad_accum_dtype"] == "fp32"


def test_checkpoints_are_committed(workspace: Workspace, trained: Path) -> None:
    listed = workspace.run("checkpoint", "list", "runs/trained", "--json")
    found = json.loads(listed.stdout)
    assert [(c["step"], c["complete"], c["world_size"]) for c in found["checkpoints"]] == [
        (3, True, 2),
        (6, True, 2),
    ]
    assert found["latest"] == "step-00000006"
    workspace.run("checkpoint", "verify", "runs/trained")


def test_the_first_steps_are_accounted(trained: Path) -> None:
    """Two bytes a parameter for the weights, twelve shared by two ranks for the rest of Adam."""
    account = json.loads((trained / "accounting.json").read_text())
    assert (account["world_size"], account["steps"]) == (2, 3)
    phases = {phase["name"]: phase for phase in account["phases"]}
    assert list(phases) == ["construct", "initialise", "forward", "backward", "step", "save"]
    assert [phase["name"] for phase in account["first_step"]] == ["forward", "backward", "step"]
    weights = phases["construct"]["device"]["now"]["parameters"]
    held = phases["step"]["device"]["now"]
    assert held["parameters"] == weights
    assert held["master"] == pytest.approx(2 * weights / 2, rel=0.01)
    assert held["optimizer"] == pytest.approx(4 * weights / 2, rel=0.01)
    for phase in phases.values():
        assert phase["device"]["peak_bytes"] >= phase["device"]["now_bytes"] > 0
        assert phase["host"]["peak_bytes"] == 0
        assert phase["process"]["peak_rss_bytes"] > phase["device"]["peak_bytes"]
        assert phase["process"]["device_peak_bytes"] is None


def test_export_is_the_same_model_in_transformers(trained: Path) -> None:
    import torch
    from transformers import LlamaForCausalLM

    from ds_llama.evals.load import load_for_inference

    theirs = LlamaForCausalLM.from_pretrained(trained / "export", dtype=torch.float32)
    ours = load_for_inference(trained / "export").model.float()
    ids = torch.arange(64).reshape(1, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(ids).logits, theirs(ids).logits, rtol=1e-5, atol=1e-5)


def test_eval_and_generate_read_the_run_folder(workspace: Workspace, trained: Path) -> None:
    report = json.loads(workspace.run("eval", "runs/trained", "--json").stdout)
    assert report["perplexity"] == pytest.approx(math.exp(report["loss"]))
    words = ("--prompt", "import", "--max-new-tokens", "8", "--json")
    assert json.loads(workspace.run("generate", "runs/trained", *words).stdout)


def test_a_finished_run_is_not_trained_again(
    workspace: Workspace, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (trained / "metrics.jsonl").read_bytes()
    result = workspace.run("train", "trained.json", "--nproc", "2")
    assert "runs/trained is finished: step-00000006 is its last step" in result.stdout
    with monkeypatch.context() as patch:
        patch.chdir(workspace.folder)
        shard = next((trained / "checkpoints" / "step-00000006").glob("*_optim_states.pt"))
        whole = shard.read_bytes()
        shard.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        assert not _is_finished(load_run("trained.json"), 2, "auto")  # it lost its last step
        shard.write_bytes(whole)
        assert _is_finished(load_run("trained.json"), 2, "auto")
    # What is there is of a run of fewer steps, so something is left to do: the export.
    (trained / "export" / "model.safetensors").unlink()
    os.utime(trained / "export" / "config.json", (1, 1))
    workspace.run("train", "trained.json", "--nproc", "2")
    assert (trained / "export" / "model.safetensors").exists()
    assert (trained / "metrics.jsonl").read_bytes() == before


def test_never_does_not_write_over_a_run(workspace: Workspace, trained: Path) -> None:
    result = workspace.run("train", "trained.json", "--nproc", "2", "--resume", "never", code=1)
    assert "error: the folder holds a committed checkpoint (step-00000006)" in result.stderr
    assert "remedy: give the run another output folder" in result.stderr


def test_required_wants_a_checkpoint(workspace: Workspace) -> None:
    run = workspace.write_run("required")
    result = workspace.run("train", run, "--nproc", "2", "--resume", "required", code=1)
    assert result.stderr.count("error: no complete checkpoint to resume from") == 1


def test_killed_interrupted_and_ended_a_run_goes_on_each_time(workspace: Workspace) -> None:
    """kill -9 of a rank inside a save, Ctrl-C, SIGTERM: one curve, and no process is left."""
    name, folder = "stopped", workspace.folder / "runs/stopped"
    run = workspace.write_run(name, train={"steps": 5000}, evaluation={"every_steps": None})
    process = _start(workspace, run, name, rows=4)
    everyone = psutil.Process(process.pid).children(recursive=True)
    rank = next(child for child in everyone if "--local_rank=1" in _words(child))
    _wait(lambda: any(folder.glob("checkpoints/.staging-*")), every=0.001)
    rank.kill()
    _, err = process.communicate(timeout=300)
    # The other rank may be the first that is found to have ended: its partner is gone.
    assert process.returncode in (1, 128 + signal.SIGKILL), err[-2000:]
    _wait(lambda: not _processes_of(run), seconds=60)
    killed, newest = kill.curve(folder), kill.newest(folder / "checkpoints")
    assert newest is not None
    assert newest % 3 == 0
    assert killed[-1][0] <= newest + 3
    assert not kill.damaged(folder / "checkpoints")

    process = _start(workspace, run, name, "checkpoint.background=true", rows=newest + 5)
    err = _stop(process, signal.SIGINT)
    assert f"going on from step-{newest:08d}" in err
    assert kill.curve(folder)[: len(killed)] == killed  # made again from the checkpoint on
    last = workspace.rows(name)[-1]["step"]
    assert kill.newest(folder / "checkpoints") == last
    assert f"step-{last:08d} is saved: training stood still for" in err
    assert "s, it was written in" in err
    _wait(lambda: not _processes_of(run), seconds=60)

    process = _start(workspace, run, name, "--resume", "required", rows=last + 3)
    err = _stop(process, signal.SIGTERM)
    assert f"going on from step-{last:08d}" in err
    assert "s, it was written in" not in err
    rows = workspace.rows(name)
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    assert kill.newest(folder / "checkpoints") == len(rows)
    assert f"step-{len(rows):08d} is saved: training stood still for" in err
    assert any(row["checkpoint_pause_s"] > 0 for row in rows)
    assert not list(folder.glob("checkpoints/.staging-*"))
    _wait(lambda: not _processes_of(run), seconds=60)


def _start(
    workspace: Workspace, run: str, name: str, *words: str, rows: int
) -> subprocess.Popen[str]:
    """Start the run on two ranks and wait for that many rows of metrics."""
    process = workspace.start("train", run, "--nproc", "2", *words, start_new_session=True)
    metrics = workspace.folder / "runs" / name / "metrics.jsonl"
    _wait(lambda: metrics.exists() and metrics.read_text().count("\n") >= rows)
    return process


def _stop(process: subprocess.Popen[str], signum: int) -> str:
    """Ask a run to end, as a terminal does on Ctrl-C or a scheduler; what it wrote to stderr."""
    if signum == signal.SIGINT:
        os.killpg(process.pid, signum)
    else:
        process.send_signal(signum)
    start = time.monotonic()
    out, err = process.communicate(timeout=300)
    assert process.returncode == 128 + signum, out[-2000:] + err[-2000:]
    assert time.monotonic() - start < PATIENCE_S  # by themselves
    return err


def test_two_runs_on_one_folder(workspace: Workspace) -> None:
    """The second stops with the name of the first, and writes nothing over its files."""
    run = workspace.write_run("shared", train={"steps": 5000}, evaluation={"every_steps": None})
    first = workspace.start("train", run)
    folder = workspace.folder / "runs" / "shared"
    metrics = folder / "metrics.jsonl"
    _wait(lambda: metrics.exists() and metrics.read_text().count("\n") >= 2)
    written = (folder / "run.json").read_bytes()
    second = workspace.run("train", run, "optimizer.lr=0.5", code=1)
    assert f"error: this run folder is in use by process {first.pid} on" in second.stderr
    assert (folder / "run.json").read_bytes() == written
    first.send_signal(signal.SIGTERM)
    assert first.wait(60) == 128 + signal.SIGTERM
    first.communicate()


def test_a_run_that_skips_every_update_does_not_finish(workspace: Workspace) -> None:
    spoilt = {"lr": 1e30, "warmup_steps": 0}
    run = workspace.write_run("spoilt", optimizer=spoilt, train={"steps": 50})
    result = workspace.run("train", run, code=1)
    assert "error: gradients are not finite, 3 updates skipped in a row" in result.stderr
    assert "remedy: lower optimizer.lr" in result.stderr
    assert "Traceback" not in result.stderr


def test_under_a_launcher_that_the_user_started(workspace: Workspace) -> None:
    run = workspace.write_run("launched")
    command = ["deepspeed", "--num_accelerators", "2", "--module", "ds_llama", "train", run]
    override = "deepspeed.zero_optimization.stage=3"
    result = subprocess.run(
        [*command, override, "train.steps=2"],
        cwd=workspace.folder,
        env=workspace.environment(),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    written = json.loads((workspace.folder / "runs/launched/deepspeed.json").read_text())
    assert written["zero_optimization"]["stage"] == 3
    assert (workspace.folder / "runs/launched/export/model.safetensors").exists()


def test_mistakes_are_found_before_anything_starts(workspace: Workspace) -> None:
    run = workspace.write_run("mistaken")
    start = time.monotonic()
    result = workspace.run("train", run, "train.stepz=3", "--nproc", "2", code=2)
    assert "remedy: did you mean 'steps'?" in result.stderr
    mistyped = {"zero_optimisation": {"stage": 2}}
    run = workspace.write_run("mistyped", deepspeed=mistyped)
    result = workspace.run("train", run, "--nproc", "2", code=1)
    assert "zero_optimization" in result.stderr
    assert "Traceback" not in result.stderr
    assert time.monotonic() - start < 10


def test_missing_data_is_found_before_anything_starts(workspace: Workspace) -> None:
    run = workspace.write_run("no-data", data={"train": "shards/absent"})
    result = workspace.run("train", run, "--nproc", "2", code=1)
    assert result.stderr.count("error: ") == 1, result.stderr
    assert "shards/absent" in result.stderr
    assert not (workspace.folder / "runs/no-data").exists()


def test_what_one_rank_reads_ends_all_with_one_message(workspace: Workspace) -> None:
    """An id beyond the vocabulary in a window of the second rank's first step."""
    ids = np.arange(1 + 40 * 63) % 400
    ids[63 * permute(2, 40, 0, 0) + 30] = 499
    with ShardWriter(workspace.folder / "odd", vocab_size=500) as writer:
        writer.add(ids)
    run = workspace.write_run("small", data={"train": "odd"}, train={"steps": 2})
    result = workspace.run("train", run, "--nproc", "2", code=1)
    assert result.stderr.count("error: ") == 1, result.stderr
    assert "token id 499, the model's vocabulary has 400" in result.stderr
    assert "Traceback" not in result.stderr
    assert "frame #" not in result.stderr, result.stderr  # of a rank that asks a store that is gone


def _wait(condition: object, seconds: float = 240, every: float = 0.1) -> None:
    end = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(every)


def _words(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.Error:  # it has ended
        return []


def _processes_of(run: str) -> list[str]:
    """Command lines of living processes that name the run's file."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if run.encode() in words:
            found.append(b" ".join(words).decode())
    return found

"""The files of a simulation: what they hold, and what is said of those that cannot be written."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest
from torch.cuda import _memory_viz as viz

from ds_llama.cli.main import main
from ds_llama.config import load_run, preset
from ds_llama.config.run import Run
from ds_llama.errors import CallError
from ds_llama.measure.film import Event, Film, Span
from ds_llama.simulator import picture
from ds_llama.simulator.outputs import Outputs
from ds_llama.simulator.stages import FULL, every_stage

GIB = 2**30


def film(*sizes: int, host: int = 0) -> Film:
    """A film of five phases, in each of which one storage comes and stays."""
    events = [Event(99, "host", "master", host, None)]
    events += [Event(i, "device", "parameters", size, None) for i, size in enumerate(sizes)]
    names = enumerate(picture.PHASES)
    spans = [Span(name, i + (i > 0), i + 2, 0 if i < 2 else 2) for i, name in names]
    return Film(events, spans)


SMALL, LARGE = film(GIB, 0, GIB, GIB, 0), film(GIB, 9 * GIB, 0, 0, 0, host=4 * GIB)


def drawn(path: Path, *films: Film, **keys: int) -> str:
    picture.draw({f"run {i}": each for i, each in enumerate(films)}, path, title="t", **keys)
    return path.read_text()


def test_a_picture_says_what_it_shows(tmp_path: Path) -> None:
    text = drawn(tmp_path / "a.svg", SMALL, LARGE, gpu_memory_bytes=8 * GIB)
    for said in ("run 0", "run 1", "8 GiB GPU", "device, GiB", "host, GiB", "backward", "master"):
        assert said in text, said
    assert ">3</text>" in text  # the first run's peak, the second's, and the host's
    assert ">10</text>" in text
    assert ">4</text>" in text
    assert drawn(tmp_path / "b.svg", SMALL, LARGE, gpu_memory_bytes=8 * GIB) == text


def test_a_host_that_holds_next_to_nothing_is_not_shown(tmp_path: Path) -> None:
    assert "host, GiB" not in drawn(tmp_path / "a.svg", SMALL)


def test_a_small_model_is_drawn_in_a_smaller_unit(tmp_path: Path) -> None:
    text = drawn(tmp_path / "a.svg", film(3 << 20, 1 << 20))
    assert "device, MiB" in text
    assert ">4</text>" in text


def test_the_legend_is_whole_under_one_panel(tmp_path: Path) -> None:
    """Nothing is drawn at the left and right edges: no word of the legend is cut."""
    picture.draw({"one": film(GIB)}, tmp_path / "a.png")
    pixels = matplotlib.image.imread(tmp_path / "a.png")[..., :3]
    assert (pixels[:, [0, 1, -2, -1]] == 1).all()


def test_a_png_is_a_png(tmp_path: Path) -> None:
    picture.draw({"one": SMALL}, tmp_path / "a.png")
    height, width, _ = matplotlib.image.imread(tmp_path / "a.png").shape
    assert width > height > 200


@pytest.mark.parametrize(
    ("outputs", "said"),
    [
        (Outputs(picture=Path("a.gif")), "no picture can be written as 'a.gif'"),
        (Outputs(gpu_memory_bytes=1), "a GPU's memory is a line in a picture"),
        (Outputs(snapshot=Path("nowhere/a.pickle")), "is in a folder that does not exist"),
        (Outputs(timeline=Path()), "is a folder"),
    ],
)
def test_what_cannot_be_written_is_said_before_anything_is_simulated(
    outputs: Outputs, said: str
) -> None:
    with pytest.raises(CallError, match=said) as error:
        outputs.check()
    assert error.value.remedy


# --- stages side by side -------------------------------------------------------------------------


def words(deepspeed: dict[str, Any]) -> dict[str, Any]:
    return {
        "model": {"preset": "tiny"},
        "data": {"train": "unused", "sequence_length": 32},
        "optimizer": {"lr": 1e-3},
        "train": {"steps": 2, "micro_batch_size": 1, "global_batch_size": 4},
        "deepspeed": deepspeed,
        "output": "unused",
    }


def tiny(deepspeed: dict[str, Any]) -> Run:
    return load_run(words(deepspeed))


def test_a_run_in_half_precision_has_fp32_weights_at_stage_0() -> None:
    own = tiny({"bf16": {"enabled": True}, "zero_optimization": {"stage": 2}})
    runs = every_stage(own, 4)
    assert list(runs) == [FULL, "stage 1", "stage 2", "stage 3"]
    assert runs["stage 2"] is own
    assert "bf16" not in runs[FULL].deepspeed
    assert runs[FULL].deepspeed["torch_autocast"] == {"enabled": True, "dtype": "bfloat16"}
    assert runs["stage 3"].deepspeed["zero_optimization"]["stage"] == 3


def test_a_run_in_fp32_is_as_it_is_at_every_stage() -> None:
    runs = every_stage(tiny({"zero_optimization": {"stage": 0}}), 4)
    assert list(runs) == [f"stage {stage}" for stage in range(4)]


# --- the command ---------------------------------------------------------------------------------


def replayed_peak(trace: list[dict[str, Any]]) -> int:
    """Most bytes at once, by the allocator's events alone."""
    now = peak = 0
    for event in trace:
        now += {"alloc": 1, "free_completed": -1}.get(event["action"], 0) * event["size"]
        peak = max(peak, now)
    return peak


def test_the_command_writes_them_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run.json"
    zero = {"stage": 2, "offload_optimizer": {"device": "cpu"}}
    run.write_text(json.dumps(words({"bf16": {"enabled": True}, "zero_optimization": zero})))
    files = {name: tmp_path / f"a.{name}" for name in ("svg", "pickle", "json")}
    asked = ["--picture", files["svg"], "--snapshot", files["pickle"], "--timeline", files["json"]]
    assert main(["simulate", str(run), "--world-size", "4", "--json", *map(str, asked)]) == 0
    found = json.loads(capsys.readouterr().out)
    peaks = {phase["name"]: phase["device"]["peak_bytes"] for phase in found["phases"]}
    assert found["moved"]["to_host_bytes"] > 0  # gradients
    assert found["moved"]["to_device_bytes"] > 0  # weights
    assert found["flops"] == 32 * preset("tiny").flops_per_token(32)
    assert "stage 2" in files["svg"].read_text()
    snapshot = pickle.loads(files["pickle"].read_bytes())
    assert "offload" in viz.trace(snapshot) or len(snapshot["device_traces"]) == 2
    stacks = [event["frames"] for event in snapshot["device_traces"][1] if event["frames"]]
    lines = {(frame["filename"], frame["name"]) for stack in stacks for frame in stack}
    assert any(name.startswith("deepspeed/runtime/zero/") for name, _ in lines)
    assert not any(name.startswith("/") for name, _ in lines)
    assert replayed_peak(snapshot["device_traces"][0]) == found["peak"]["device_bytes"]
    # A film has what is between phases too, such as batches that are being made.
    assert replayed_peak(snapshot["device_traces"][1]) >= found["peak"]["host_bytes"]
    told = [e for trace in snapshot["device_traces"] for e in trace[1:]]
    assert all(event["frames"] for event in told)
    # 7B has five times as many events; their stacks are shared, and so are a few megabytes.
    assert files["pickle"].stat().st_size < 150 * len(told)
    counters = [e for e in json.loads(files["json"].read_text())["traceEvents"] if e["ph"] == "C"]
    totals = [e["args"]["bytes"] for e in counters if (e["pid"], e["name"]) == (1, "total")]
    assert max(totals) == found["peak"]["device_bytes"] == max(peaks.values())

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import pytest

from ds_llama.errors import MachineError
from ds_llama.tracking.tensorboard import TensorBoardTracker


def test_scalars_are_read_back(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    for start, steps in ((0, (1, 2, 3)), (2, (3, 4))):
        tracker = TensorBoardTracker(start)
        tracker.start({"api_key": "hunter2hunter2", "train": {"steps": 4}}, tmp_path)
        for step in steps:
            tracker.log({"step": step, "loss": start + 1.0 / step, "mfu": None, "skipped": False})
        if start:
            tracker.rewind(3)
            tracker.log({"step": 4, "loss": 7.0})
        tracker.close("finished")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tensorboard's own, of numpy and protobuf
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(str(tmp_path / "tensorboard"))
        events.Reload()
    loss = {event.step: event.value for event in events.Scalars("loss")}
    assert loss == pytest.approx({1: 1.0, 2: 0.5, 3: 2 + 1 / 3, 4: 7.0})
    assert len(events.Scalars("loss")) == 4  # no step twice
    assert "mfu" not in events.Tags()["scalars"]
    for file in (tmp_path / "tensorboard").iterdir():
        assert b"hunter2" not in file.read_bytes()


def test_without_tensorboard_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(MachineError) as caught:
        TensorBoardTracker().start({}, tmp_path)
    assert "TensorBoard is asked for and is not installed" in caught.value.what
    assert caught.value.where == "tracking.tensorboard"
    assert 'pip install "ds_llama[tensorboard]"' in caught.value.remedy

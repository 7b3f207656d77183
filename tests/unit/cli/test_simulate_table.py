"""What `ds-llama simulate` prints, in a terminal of 80 columns."""

from __future__ import annotations

import pytest

from ds_llama.cli.simulate_table import show
from ds_llama.measure.phases import Bytes
from ds_llama.simulator import SimulatedPhase, Simulation

NOTHING = Bytes(0, 0)


def phase(name: str, size: int) -> SimulatedPhase:
    held = Bytes(size, 2 * size, {"parameters": size}, {"parameters": size, "logits": size})
    return SimulatedPhase(name, held, NOTHING, held)


def test_phases_stand_whole_and_the_peak_is_split(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    moved = {"collectives": {}} | dict.fromkeys(
        ("to_device_bytes", "to_host_bytes", "nvme_read_bytes", "nvme_write_bytes"), 0
    )
    names = {"construct": 1, "initialise": 2, "forward": 3, "backward": 4, "step": 2}
    phases = tuple(phase(name, 1023 * 2**20 + size) for name, size in names.items())
    show(Simulation(64, 0, "sim", 3, 10**9, phases, phases[2:], 1.0, moved=moved))
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    for name in names:
        assert sum(line.split()[:1] == [name] for line in lines) == 1
    assert "device peak, in backward: parameters 1023 MiB, logits 1023 MiB" in lines
    assert not any(line.startswith("host peak") for line in lines)
    assert "collectives of a step: none" in lines

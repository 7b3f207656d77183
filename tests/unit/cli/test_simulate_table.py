"""What `ds-llama simulate` prints, in terminals of 80 and 60 columns."""

from __future__ import annotations

import pytest

from ds_llama.cli.simulate_table import show
from ds_llama.measure.phases import Bytes
from ds_llama.simulator import SimulatedPhase, Simulation


def phase(name: str, size: int) -> SimulatedPhase:
    held = Bytes(size, 2 * size, {"parameters": size}, {"parameters": size, "logits": size})
    return SimulatedPhase(name, held, Bytes(size, size), held)


LINKS = ("to_device_bytes", "to_host_bytes", "nvme_read_bytes", "nvme_write_bytes")


@pytest.mark.parametrize("columns", [80, 60])
def test_phases_stand_whole_and_the_peak_is_split(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    moved = {"collectives": {}} | dict.fromkeys(LINKS, 0)
    names = {"construct": 1, "initialise": 2, "forward": 3, "backward": 4, "step": 2}
    phases = tuple(phase(name, 1023 * 2**20 + size) for name, size in names.items())
    show(Simulation(64, 0, "sim", 3, 10**9, phases, phases[2:], 1.0, moved=moved))
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    for name in names:
        (row,) = (line for line in lines if line.split()[:1] == [name])
        assert len(row.split()) == 1 + 4 * (3 if columns == 80 else 2)  # a number and its unit
    assert "device peak, in backward: parameters 1023 MiB, logits 1023 MiB" in " ".join(lines)
    assert not any(line.startswith("host peak") for line in lines)
    assert "collectives of a step: none" in lines


def test_one_rank_is_not_compared_with_the_paper(capsys: pytest.CaptureFixture[str]) -> None:
    moved = {"collectives": {"reduce_scatter": 4}} | dict.fromkeys(LINKS, 0)
    phases = (phase("step", 1),)
    show(Simulation(1, 0, "sim", 3, 2, phases, phases, 1.0, moved=moved))
    said = capsys.readouterr().out
    assert "collectives of a step: reduce_scatter 4 B" in said
    assert "one rank: what is called stays on it, and nothing is sent" in said
    assert "the ZeRO paper" not in said

"""Table 1 of the ZeRO paper, arXiv 1910.02054: GB on a device, with its own rounding."""

from __future__ import annotations

import pytest

from ds_llama.planner.paper import Sharded, model_states

KINDS: tuple[Sharded, ...] = ("os", "os+g", "os+g+p")
# ranks: the nine figures of the row, for 7.5B, 128B and 1T.
TABLE = {
    1: ((120, 120, 120), (2048, 2048, 2048), (16000, 16000, 16000)),
    4: ((52.5, 41.3, 30), (896, 704, 512), (7000, 5500, 4000)),
    16: ((35.6, 21.6, 7.5), (608, 368, 128), (4750, 2875, 1000)),
    64: ((31.4, 16.6, 1.88), (536, 284, 32), (4187, 2218, 250)),
    256: ((30.4, 15.4, 0.47), (518, 263, 8), (4046, 2054, 62.5)),
    1024: ((30.1, 15.1, 0.12), (513, 257, 2), (4011, 2013, 15.6)),
}


@pytest.mark.parametrize("ranks", TABLE)
def test_table_1(ranks: int) -> None:
    for size, row in zip((7.5e9, 128e9, 1e12), TABLE[ranks], strict=True):
        for kind, printed in zip(KINDS, row, strict=True):
            found = model_states(size, ranks, kind) / 1e9
            if printed >= 100:  # cut off: 4187.5 is printed as 4187
                assert int(found) == printed, (size, kind)
            else:
                step = 0.1 if printed >= 10 else 0.01
                assert found == pytest.approx(printed, abs=step / 2 + 1e-9), (size, kind)


def test_without_sharding_a_parameter_takes_16_bytes() -> None:
    assert model_states(1, 64, "none") == 16

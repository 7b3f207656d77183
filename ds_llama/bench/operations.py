"""Where the time of a step goes, operation by operation, as torch's profiler sees rank 0."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

STEPS = 2
_MOST = 15  # operations that a row keeps; the file beside the trace has more


def profile(step: Callable[[], None], device: torch.device, trace: Path | None) -> dict[str, Any]:
    """Take `STEPS` steps under the profiler, and write the trace with its table where one is named.

    What comes back is a row's: seconds and calls of a step by operation, without those within
    (self time), of the host, or of the device where there is one; the longest first. `self_s` is
    their sum over all operations. Threads work beside each other: it may be more than a step.
    """
    kinds, clock = [torch.profiler.ProfilerActivity.CPU], "cpu"
    if device.type == "cuda":
        kinds.append(torch.profiler.ProfilerActivity.CUDA)
        clock = "device"
    with torch.profiler.profile(activities=kinds) as profiler:
        for _ in range(STEPS):
            step()
    average, by = profiler.key_averages(), f"self_{clock}_time_total"
    if trace is not None:
        trace.parent.mkdir(parents=True, exist_ok=True)
        profiler.export_chrome_trace(str(trace))
        table = average.table(sort_by=by, row_limit=40)
        trace.with_suffix("").with_suffix(".txt").write_text(table)
    found = [(str(e.key), getattr(e, by) / 1e6 / STEPS, e.count / STEPS) for e in average]
    found.sort(key=lambda one: -one[1])
    return {
        "steps": STEPS,
        "clock": clock,
        "self_s": sum(seconds for _, seconds, _ in found),
        "operations": [
            {"name": name, "self_s": seconds, "calls": calls}
            for name, seconds, calls in found[:_MOST]
            if seconds > 0
        ],
    }

"""A row as the report reads it: shapes of what a benchmark writes, each checked when it is read.

What a row does not say is None. Keys that are not named here are let pass: rows may grow.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

OK = "ok"
OURS = "ds_llama"


# A loss that is not finite is a result like any other.
AnyFloat = Annotated[float, Field(allow_inf_nan=True)]


class Read(BaseModel):
    """A part of a file that a benchmark wrote; it may have more than this says."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class Step(Read):
    """Seconds of a step: over all measured steps, and the median of each launch."""

    median: float = Field(gt=0)
    p10: float
    p90: float
    steps: int
    medians: list[Annotated[float, Field(gt=0)]] = Field(min_length=1)


class Side(Read):
    """Bytes of a rank, the largest over ranks; `terms` split the device's by what they are for."""

    device_peak_bytes: int
    device_steady_bytes: int
    host_peak_bytes: int
    total_peak_bytes: int | None = None
    total_steady_bytes: int | None = None
    peak_phase: str
    steady_terms: dict[str, int] = {}
    peak_terms: dict[str, int] = {}


class Memory(Read):
    """By plan, by counting (None where nothing could be counted), and of the process.

    A CPU has one memory, and all that is counted there is the device's; the plan is of a GPU, with
    device and host apart, and what it says of a CPU is its total.
    """

    predicted: Side | None = None
    measured: Side | None = None
    process: dict[str, float | None] | None = None


class Theory(Read):
    """What moved beside the paper's count; `gaps` names the cause of every byte between them."""

    measured_bytes: float
    paper_bytes: float
    measured_volumes: float
    paper_volumes: float
    gaps: dict[str, float] = {}


class Traffic(Read):
    """Bytes of a rank in a step."""

    collectives: dict[str, float] = {}
    calls: dict[str, float] = {}
    volume_bytes: float | None = None
    to_device_bytes: float = 0
    to_host_bytes: float = 0
    nvme_read_bytes: float = 0
    nvme_write_bytes: float = 0
    theory: Theory | None = None


class Flops(Read):
    """Of a rank in a step; `hardware` counts what is computed twice twice."""

    model: float
    hardware: float
    recomputed: float = 0


class Peak(Read):
    """FLOP/s of a product of matrices: measured in the same launch, and the vendor's figure."""

    measured: float = Field(gt=0)
    vendor: float | None = None


class Operation(Read):
    """Seconds and calls of one operation in a step, without those within it."""

    name: str
    self_s: float
    calls: float


class Profile(Read):
    """A step of rank 0 by torch's profiler; self_s: of all operations, those not named too."""

    clock: str
    self_s: float = Field(gt=0)
    operations: list[Operation]


class Launch(Read):
    """One launch of a cell, raw."""

    device: str | None = None
    threads: int | None = None
    matmul_flops: float | None = None


class Measured(Read):
    """What a row has beyond its cell when the cell was measured."""

    parameters: int
    global_batch_size: int
    tokens_per_step: float = Field(gt=0)
    tokens_per_s: float = Field(gt=0)
    tokens_per_s_per_device: float
    step_s: Step
    data_wait_share: float | None = None
    imbalance: float | None = None
    mfu: float | None = None
    hfu: float | None = None
    peak_flops: Peak | None = None
    memory: Memory = Memory()
    parts_s: dict[str, float] | None = None
    profile: Profile | None = None
    traffic: Traffic | None = None
    flops: Flops | None = None
    losses: list[AnyFloat | None] = []
    grad_norms: list[AnyFloat | None] = []
    joules_per_token: float | None = None
    joules_of: list[str] = []
    start_s: float | None = None
    repeats: list[Launch] = []
    config: dict[str, Any] | None = None
    provenance: dict[str, Any] | None = None

    @property
    def memory_bytes(self) -> int | None:
        """The peak on one device, by counting."""
        return None if self.memory.measured is None else self.memory.measured.device_peak_bytes

    @property
    def planned_peak_bytes(self) -> int | None:
        """What the plan says of `memory_bytes`."""
        plan = self.memory.predicted
        if plan is None:
            return None
        return plan.total_peak_bytes if self.device == "cpu" else plan.device_peak_bytes

    @property
    def planned_steady_bytes(self) -> int | None:
        """The same for what stays between two steps."""
        plan = self.memory.predicted
        if plan is None:
            return None
        return plan.total_steady_bytes if self.device == "cpu" else plan.device_steady_bytes

    @property
    def device(self) -> str | None:
        return self.repeats[-1].device if self.repeats else None


class Cell(Read):
    """One cell of a case: what it is, and what came of it."""

    key: str
    program: str
    model: str | dict[str, Any]
    model_name: str
    stage: int
    offload: str
    strategy: str
    precision: str
    recompute: bool
    compile: bool
    micro_batch_size: int
    accumulation: int
    sequence_length: int
    world_size: int
    name: str | None = None
    status: str
    reason: str | None = None
    rule: str | None = None
    measured: Measured | None = None

    @property
    def global_batch_size(self) -> int:
        return self.micro_batch_size * self.accumulation * self.world_size

    @property
    def program_name(self) -> str:
        """ "huggingface:compiled" of "../peers/huggingface.py:compiled"."""
        return self.program.rsplit("/", 1)[-1].replace(".py", "")


def parse(content: dict[str, Any]) -> Cell:
    """The cell of a row. Raises pydantic's ValidationError.

    The plan is of this package's own program: beside another's memory it would predict nothing.
    """
    if content.get("status") != OK:
        return Cell.model_validate({**content, "measured": None})
    measured = Measured.model_validate(content)
    if content.get("program") != OURS:
        memory = measured.memory.model_copy(update={"predicted": None})
        measured = measured.model_copy(update={"memory": memory})
    return Cell.model_validate({**content, "measured": measured})

"""What a preflight finds, as a value."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

Severity = Literal["error", "warning", "note"]
ALL = "all hosts"
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")


@dataclass(frozen=True)
class Problem:
    """One finding about one host. `code` never changes its meaning; only errors stop a launch."""

    code: str
    severity: Severity
    host: str
    message: str
    remedy: str

    def to_dict(self) -> dict[str, str]:
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.severity}: {self.message}\nwhere: {self.host}\nremedy: {self.remedy}"

"""What a supervisor and its agents say to each other: one JSON object a line, both ways.

    agent                         supervisor
    hello                    →
                             ←    route    towards: how the others are reached (to the first host)
    master                   →
                             ←    job
    ready                    →             the ops are compiled
                             ←    start    every host is ready
    out, fallen, ended       →             rank 0's words; a rank that failed; nothing is left here
                             ←    stop     how: save, end, kill; signum: that the ranks save at
    beat                     ↔    beat     there is nothing else to say

Whoever has heard nothing for `SILENT_S` takes the other side for dead.
"""

from __future__ import annotations

import json
from typing import Any

BEAT_S = 2.0
SILENT_S = 15.0
LONGEST_BYTES = 1 << 22
_KIND = "ds_llama"

Message = dict[str, Any]


def pack(kind: str, **content: Any) -> bytes:
    """One message as a line."""
    return json.dumps({_KIND: kind, **content}).encode() + b"\n"


def unpack(line: bytes) -> tuple[str, Message] | None:
    """Kind and content; None for a line that is no message, such as a login shell's greeting."""
    try:
        content = json.loads(line)
    except ValueError:
        return None
    if not isinstance(content, dict) or not isinstance(kind := content.pop(_KIND, None), str):
        return None
    return kind, content

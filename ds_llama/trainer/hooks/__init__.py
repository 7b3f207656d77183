"""What happens around a step. One hook, one module; the order of `default_hooks` is the order."""

from __future__ import annotations

from ds_llama.trainer.hooks.account import Account
from ds_llama.trainer.hooks.base import Hook
from ds_llama.trainer.hooks.export import Export
from ds_llama.trainer.hooks.replicas import CheckReplicas
from ds_llama.trainer.hooks.save import Save
from ds_llama.trainer.hooks.track import Track
from ds_llama.trainer.hooks.validate import Validate
from ds_llama.trainer.hooks.watch import Watch

__all__ = [
    "Account",
    "CheckReplicas",
    "Export",
    "Hook",
    "Save",
    "Track",
    "Validate",
    "Watch",
    "default_hooks",
]


def default_hooks() -> list[Hook]:
    """Measure before the row is written, write the row before the checkpoint that covers it."""
    return [
        CheckReplicas(),
        Validate(),
        Watch(),
        Track(),
        Save(),
        Account(),
        Export(),
    ]

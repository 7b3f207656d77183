"""`python -m ds_llama`, which is also what the deepspeed launcher starts (`--module ds_llama`)."""

from __future__ import annotations

from ds_llama.cli.main import entry

if __name__ == "__main__":
    entry()

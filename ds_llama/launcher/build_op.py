"""`python -m ds_llama.launcher.build_op NAME`: compile one DeepSpeed op in a process of its own.

Prints, as its last line, the path of the library. Everything above that is the compiler's.
"""

from __future__ import annotations

import sys

from ds_llama.launcher.orphan import die_with_parent


def main(name: str) -> None:
    """Compile and load the op; whatever goes wrong is a traceback, which the parent keeps."""
    die_with_parent()
    from deepspeed.accelerator import get_accelerator

    from ds_llama.launcher.ops import OPS

    builder = get_accelerator().create_op_builder(OPS[name].builder)
    if builder is None:
        raise SystemExit(f"error: DeepSpeed has no {OPS[name].builder} for this accelerator")
    print(builder.load(verbose=True).__file__)


if __name__ == "__main__":
    main(sys.argv[1])

"""One rank of `world.launch`: runs every cell of this world size, and writes what came out."""

from __future__ import annotations

import gc
import json
import sys
import time
import traceback
from pathlib import Path

import torch
from deepspeed.accelerator import get_accelerator

from ds_llama.selftest.compare import remember_processor
from ds_llama.zero import world
from tests.distributed.cells import cells_of


def main(folder: Path, patterns: list[str]) -> None:
    torch.set_num_threads(1)
    # DeepSpeed refuses fp16 where oneDNN has no fast kernels for it; torch's own compute it anyway.
    get_accelerator().is_fp16_supported = lambda: True
    remember_processor()
    world.join()
    cells = cells_of(world.world_size(), patterns)
    with (folder / f"rank-{world.rank()}.jsonl").open("w") as out:
        for name, cell in cells.items():
            # An Account collects garbage at every phase, which need not look at all that is here
            # already: modules, and what cells before have left.
            gc.collect()
            gc.freeze()
            start = time.perf_counter()
            error = None
            try:
                cell(folder / name)
            except Exception:
                error = traceback.format_exc()
            row = {"cell": name, "seconds": time.perf_counter() - start, "error": error}
            out.write(json.dumps(row) + "\n")
            out.flush()
            torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    words = [word for word in sys.argv[1:] if not word.startswith("--local_rank")]
    main(Path(words[0]), words[1:])

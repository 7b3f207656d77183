"""deepspeed --module other_lm.train RUN.json OUT.json [key.path=value …]"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

import torch

import ds_llama as dl
from other_lm import Mixer, OtherLM


def main(run_json: str, out: Path, *overrides: str) -> None:
    for stage in (2, 3):
        run = dl.load_run(
            run_json,
            f"deepspeed.zero_optimization.stage={stage}",
            f"output=runs/stage{stage}",
            *overrides,
        )
        torch.manual_seed(0)
        engine = dl.register(OtherLM(), run)
        calls: Counter[str] = Counter()
        for module in engine.module.modules():
            if isinstance(module, Mixer):
                module.norm.register_forward_hook(lambda *_, calls=calls: calls.update(["norm"]))
        dl.train(engine, run)
        decay = [
            (group["weight_decay"], sum(getattr(p, "ds_numel", p.numel()) for p in group["params"]))
            for group in engine.optimizer.optimizer.param_groups
        ]
        found = {"stage": engine.zero_optimization_stage(), "calls": calls["norm"], "decay": decay}
        if torch.distributed.get_rank() == 0:
            with out.open("a") as file:
                file.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    words = [word for word in sys.argv[1:] if not word.startswith("--local_rank")]
    main(words[0], Path(words[1]), *words[2:])

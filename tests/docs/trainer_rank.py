"""One rank of `test_trainer.py`: the README's lines under every strategy that is named."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path

import deepspeed
import torch
import transformers
from accelerate.state import AcceleratorState
from transformers import LlamaForCausalLM

from tests.distributed.runs import global_batch


class Kept(transformers.Trainer):
    """The README's lines do not keep theirs."""

    last: Kept

    def __init__(self, **words: object) -> None:
        super().__init__(**words)
        Kept.last = self


def main(lines: str, weights: str, out: Path, strategies: list[str]) -> None:
    # Compiled in silence for a minute otherwise (deepspeed/comm/torch.py:207).
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    arguments = partial(
        transformers.TrainingArguments,
        use_cpu=True,
        max_steps=2,
        logging_steps=1,
        per_device_train_batch_size=2,
        learning_rate=1e-2,
        lr_scheduler_type="constant",
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    row = {name: tensor[0] for name, tensor in global_batch(0, 1).items()}
    found = {}
    for strategy in strategies:
        AcceleratorState._reset_state(reset_partial_state=True)
        transformers.set_seed(0)
        names = {
            "json": json,
            "TrainingArguments": arguments,
            "Trainer": Kept,
            "model": LlamaForCausalLM.from_pretrained(weights),
            "dataset": [row] * 8,
        }
        exec(lines.replace("zero2", strategy), names)
        trainer = Kept.last
        found[strategy] = {
            "stage": trainer.model_wrapped.zero_optimization_stage(),
            "dtype": str(trainer.model_wrapped.module.lm_head.weight.dtype),
            "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        }
    if torch.distributed.get_rank() == 0:
        out.write_text(json.dumps(found))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()  # gloo's threads may abort a process that exits


if __name__ == "__main__":
    words = [word for word in sys.argv[1:] if not word.startswith("--local_rank")]
    main(Path(words[0]).read_text(), words[1], Path(words[2]), words[3:])

"""One rank of test_strategies: four updates under a shipped JSON, the losses written down."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import deepspeed
import torch

from ds_llama.trainer.build import construct
from ds_llama.zero import world
from ds_llama.zero.register import register
from ds_llama.zero.step import take_step
from tests.distributed.runs import global_batch, make_run, split
from tests.strategies import content


def main(folder: Path, name: str) -> None:
    world.join()
    train = in_a_script if "zenflow" in name else in_a_run
    losses = train(folder, content(name))
    if world.rank() == 0:
        (folder / "losses.json").write_text(json.dumps(losses))


def in_a_run(folder: Path, deepspeed_json: dict) -> list[float]:
    size = world.world_size()
    run = make_run(folder, world=size, deepspeed=deepspeed_json)
    engine = register(construct(run), run)
    window = split(global_batch(0, 2 * size), 2, world.rank(), size)
    return [take_step(engine, window).loss for _ in range(4)]


def in_a_script(folder: Path, deepspeed_json: dict) -> list[float]:
    """A loop of DeepSpeed's own, the model constructed without zero.Init."""
    size = world.world_size()
    model = construct(make_run(folder, stage=2, precision="bf16", world=size), how="plain")
    config = deepspeed_json | {"train_micro_batch_size_per_gpu": 2}
    engine, *_ = deepspeed.initialize(
        model=model, config=config, model_parameters=model.parameters()
    )
    window = split(global_batch(0, 2 * size), 2, world.rank(), size)[0]
    batch = {key: tensor.to(engine.device) for key, tensor in window.items()}
    losses = []
    for _ in range(12):
        loss = engine(**batch).loss
        engine.backward(loss)
        engine.step()
        torch.distributed.all_reduce(loss.detach_())
        losses.append(float(loss) / size)
    return losses


if __name__ == "__main__":
    words = [word for word in sys.argv[1:] if not word.startswith("--local_rank")]
    main(Path(words[0]), words[1])

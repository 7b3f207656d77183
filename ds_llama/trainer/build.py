"""From a run to a model: random weights, or those of a pretrained folder."""

from __future__ import annotations

from functools import partial

from ds_llama.config.run import Run
from ds_llama.model.llama import Llama
from ds_llama.weights.load import load_pretrained_
from ds_llama.zero import construct as constructor
from ds_llama.zero import register, world


def construct(run: Run, *, how: constructor.How | None = None) -> Llama:
    """The run's model in its training dtype, constructed as its DeepSpeed JSON needs.

    Values are drawn in fp32 from `train.seed` and cast, equal bit for bit under plain, meta and
    `zero.Init` construction (`how` overrides the choice) at any world size; with
    `{"pretrained": folder}` they are read from the folder instead, and rows of a larger
    `vocab_size` beside it are the mean of those there. Collective at stage 3.
    Raises ConfigError for a run that does not resolve, ModelError for weights that do not fit.
    """
    world.join()
    resolved = register.resolve_here(run)
    source = resolved.run.model
    grow = "vocab_size" in source.keys
    fill = (
        partial(load_pretrained_, folder=source.pretrained, grow_vocabulary=grow)
        if source.pretrained
        else None
    )
    return constructor.build(resolved, how=how, fill=fill)

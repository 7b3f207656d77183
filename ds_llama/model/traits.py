"""What a sharding engine must know about a model, as data beside it.

    register_traits(MyModel, Traits(MyBlock, no_decay=("*norm*", "*.bias"), decay=("*.weight",)))

Patterns are shell patterns over parameter names. Rows are strict: a parameter that no row matches
is an error that names it, since an engine that guesses is wrong in silence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from importlib.metadata import entry_points
from typing import Any

from torch import nn

from ds_llama.errors import ModelError
from ds_llama.model.attention import Attention
from ds_llama.model.llama import Block, Llama
from ds_llama.model.mlp import MLP

ENTRY_POINT_GROUP = "ds_llama.models"


@dataclass(frozen=True)
class Traits:
    """Rows about one model class.

    block_class: the repeated block: unit of recomputation and of compilation. attention_class,
    mlp_class: its halves, each of which can be recomputed alone. leaf_classes: modules that ZeRO-3
    gathers whole, when an engine compiles them. tied: pairs of names that share a
    Parameter when the model's config ties embeddings. column_parallel, row_parallel: weights split
    by output or by input rows under tensor parallelism. no_decay is looked at before decay.
    sum_loss: keyword arguments of forward that make `.loss` the sum over valid tokens; None when
    the model knows only their mean. apart: keyword arguments of forward with which it attends
    within documents only, each of which begins where `position_ids` begin again; None when it
    cannot. takes_lengths: forward takes `document_lengths` too (`model.documents`).
    """

    block_class: type[nn.Module] | None = None
    leaf_classes: tuple[type[nn.Module], ...] = ()
    tied: tuple[tuple[str, str], ...] = ()
    column_parallel: tuple[str, ...] = ()
    row_parallel: tuple[str, ...] = ()
    no_decay: tuple[str, ...] = ()
    decay: tuple[str, ...] = ()
    sum_loss: Mapping[str, Any] | None = field(default=None, hash=False)
    attention_class: type[nn.Module] | None = None
    mlp_class: type[nn.Module] | None = None
    apart: Mapping[str, Any] | None = field(default=None, hash=False)
    takes_lengths: bool = False


def register_traits(cls: type[nn.Module] | str, traits: Traits | Callable[[], Traits]) -> None:
    """Traits for a class and its subclasses.

    A class may be given by its path, "package.module.Class", and traits by a function that makes
    them when they are first wanted, so that registering imports nothing.
    """
    _registry[cls if isinstance(cls, str) else _path(cls)] = traits


def find_traits(model: nn.Module) -> Traits | None:
    """The traits of the model's class or of the nearest base that has some; None without any.

    Entry points of the group `ds_llama.models` are consulted when none is known: each is a function
    without arguments that calls `register_traits`. Raises ModelError for one that does not load.
    """
    found = _find(model)
    if found is None:
        _load_entry_points()
        found = _find(model)
    return found


def traits_of(model: nn.Module) -> Traits:
    """`find_traits`, for a model that must have some; ModelError otherwise."""
    found = find_traits(model)
    if found is None:
        raise ModelError(
            f"no traits are known for {_path(type(model))}",
            where="model",
            remedy="call ds_llama.register_traits(cls, Traits(...)) before registering the model, "
            f"or install a package with an entry point in the group {ENTRY_POINT_GROUP!r}",
        )
    return found


def decay_groups(model: nn.Module, traits: Traits) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Parameters with and without weight decay, frozen ones left out, a tied one once.

    Raises ModelError with every parameter that no row matches.
    """
    decayed, undecayed, unknown = [], [], []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if _matches(name, traits.no_decay):
            undecayed.append(parameter)
        elif _matches(name, traits.decay):
            decayed.append(parameter)
        else:
            unknown.append(name)
    _refuse(unknown, type(model), "decay or no_decay")
    return decayed, undecayed


def parallel_style(name: str, traits: Traits) -> str | None:
    """ "column", "row", or None for a parameter that every tensor-parallel rank holds whole."""
    if _matches(name, traits.column_parallel):
        return "column"
    return "row" if _matches(name, traits.row_parallel) else None


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _refuse(names: list[str], cls: type, rows: str) -> None:
    if names:
        raise ModelError(
            f"no row of the traits matches {', '.join(names)}",
            where=f"traits of {_path(cls)}",
            remedy=f"add a pattern that matches to {rows}",
        )


# --- registry --------------------------------------------------------------------------------

_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_ROWS: dict[str, Any] = {
    "tied": (("lm_head.weight", "model.embed_tokens.weight"),),
    "column_parallel": tuple(f"*.{n}_proj.*" for n in ("q", "k", "v", "gate", "up")),
    "row_parallel": ("*.o_proj.*", "*.down_proj.*"),
    "no_decay": ("*norm.weight", "*.bias"),
    "decay": (
        "model.embed_tokens.weight",
        "lm_head.weight",
        *(f"*.{name}.weight" for name in _LINEAR),
    ),
}


def _path(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _huggingface() -> Traits:
    from transformers.models.llama import modeling_llama as theirs

    return Traits(
        theirs.LlamaDecoderLayer,
        (theirs.LlamaDecoderLayer,),
        **_ROWS,
        # The loss is the sum divided by this number, which is how its Trainer counts tokens.
        sum_loss={"num_items_in_batch": 1},
        attention_class=theirs.LlamaAttention,
        mlp_class=theirs.LlamaMLP,
        # With a cache, which it makes by default, positions say nothing of documents there.
        apart={"use_cache": False},
    )


def _ours() -> Traits:
    halves = {"attention_class": Attention, "mlp_class": MLP}
    known = {"sum_loss": {"reduction": "sum"}, "apart": {}, "takes_lengths": True}
    return Traits(Block, (Block,), **_ROWS, **known, **halves)


_registry: dict[str, Traits | Callable[[], Traits]] = {}
_loaded: set[str] = set()
register_traits(Llama, _ours)
register_traits("transformers.models.llama.modeling_llama.LlamaForCausalLM", _huggingface)


def _find(model: nn.Module) -> Traits | None:
    for cls in type(model).__mro__:
        traits = _registry.get(_path(cls))
        if traits is not None:
            return traits if isinstance(traits, Traits) else traits()
    return None


def _load_entry_points() -> None:
    for entry in entry_points(group=ENTRY_POINT_GROUP):
        if entry.value in _loaded:
            continue
        _loaded.add(entry.value)
        try:
            entry.load()()
        except Exception as error:
            raise ModelError(
                f"entry point {entry.name!r} does not load: {error}",
                where=f"{ENTRY_POINT_GROUP}: {entry.value}",
                remedy="mend or remove the package that declares it",
            ) from error

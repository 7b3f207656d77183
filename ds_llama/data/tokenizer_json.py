"""A sentencepiece model written once more as `tokenizer.json`, with equal ids.

The `LlamaTokenizer` class of transformers 5 rebuilds its pipeline with a Metaspace pre-tokenizer,
which adds no space of its own to a text that begins with one; sentencepiece always adds it
(`add_dummy_prefix`). Ids then differ for every text that begins with a space. So the pipeline is
written out here, with Prepend and Replace as normalizers as transformers 4 did, and the config
names `PreTrainedTokenizerFast`, which takes it as it is.

User-defined symbols are no added tokens: a text is cut at those before it is normalized, and the
prefix would be put before each part.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ds_llama.data.fingerprint import write_json
from ds_llama.data.tokenizer_proto import Kind, Model, Type, parse

if TYPE_CHECKING:
    import sentencepiece

_SPACE = "\u2581"
# unigram_model.cc gives a user-defined symbol max_score_ * length - 0.1, where max_score_ begins at
# FLT_MIN, above every score: no other way through the text is better.
_SYMBOL_SCORE = -0.1


def write_transformers_files(model: sentencepiece.SentencePieceProcessor, folder: Path) -> None:
    """Write `tokenizer.json` and `tokenizer_config.json` for a BPE or unigram model.

    For any other, or one that normalizes, nothing is written: what it does is not told here.
    """
    parsed = parse(model.serialized_model_proto())
    if not _is_told(parsed) or min(model.bos_id(), model.eos_id(), model.unk_id()) < 0:
        return
    unknown, bos, eos = (
        model.id_to_piece(i) for i in (model.unk_id(), model.bos_id(), model.eos_id())
    )
    pipeline = _pipeline(parsed, unknown, bos, model.bos_id())
    pipeline.save(str(folder / "tokenizer.json"))
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": bos,
            "eos_token": eos,
            "unk_token": unknown,
            "add_bos_token": True,
            "add_eos_token": False,
            "clean_up_tokenization_spaces": False,
        },
    )


def _is_told(model: Model) -> bool:
    known = model.plain and model.kind in (Kind.BPE, Kind.UNIGRAM)
    return known and not any(piece.type == Type.UNUSED for piece in model.pieces)


def _pipeline(model: Model, unknown: str, bos: str, bos_id: int) -> Any:
    from tokenizers import AddedToken, Tokenizer, normalizers, processors

    pipeline = Tokenizer(_bpe(model, unknown) if model.kind == Kind.BPE else _unigram(model))
    prefix = [normalizers.Prepend(_SPACE)] if model.add_dummy_prefix else []
    pipeline.normalizer = normalizers.Sequence([*prefix, normalizers.Replace(" ", _SPACE)])
    cuts = _cuts(model)
    if cuts is not None:
        pipeline.pre_tokenizer = cuts
    pipeline.decoder = _decoder(model)
    pipeline.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=[(bos, bos_id)]
    )
    special = (p.text for p in model.pieces if p.type in (Type.UNKNOWN, Type.CONTROL))
    pipeline.add_special_tokens(
        [AddedToken(token, normalized=False, special=True) for token in special]
    )
    return pipeline


def _decoder(model: Model) -> Any:
    from tokenizers import decoders

    steps = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    prefix = [decoders.Strip(" ", 1, 0)] if model.add_dummy_prefix else []
    return decoders.Sequence([*steps, *prefix])


def _unigram(model: Model) -> Any:
    from tokenizers.models import Unigram

    scores = [
        (p.text, _SYMBOL_SCORE if p.type == Type.USER_DEFINED else p.score) for p in model.pieces
    ]
    [unknown] = (i for i, piece in enumerate(model.pieces) if piece.type == Type.UNKNOWN)
    return Unigram(scores, unk_id=unknown, byte_fallback=model.byte_fallback)


def _bpe(model: Model, unknown: str) -> Any:
    from tokenizers.models import BPE

    return BPE(
        vocab={piece.text: i for i, piece in enumerate(model.pieces)},
        merges=merges(model),
        unk_token=unknown,
        fuse_unk=True,
        byte_fallback=model.byte_fallback,
        # A symbol that was cut out is a piece as it stands.
        ignore_merges=bool(_symbols(model)),
    )


def merges(model: Model) -> list[tuple[str, str]]:
    """The merges that a sentencepiece BPE model implies, in the order it would apply them.

    The model stores pieces with a score that falls with the merge's rank, and merges whichever
    neighbours form the best-scored piece: so each way to cut a piece in two is a merge.
    """
    ids = {piece.text: i for i, piece in enumerate(model.pieces) if piece.type == Type.NORMAL}
    cuts = [
        (-model.pieces[whole].score, ids[text[:k]], ids[text[k:]])
        for text, whole in ids.items()
        for k in range(1, len(text))
        if text[:k] in ids and text[k:] in ids
    ]
    return [(model.pieces[left].text, model.pieces[right].text) for _, left, right in sorted(cuts)]


def _symbols(model: Model) -> list[str]:
    """User-defined symbols, the longest first, which sentencepiece prefers too."""
    symbols = (piece.text for piece in model.pieces if piece.type == Type.USER_DEFINED)
    return sorted(symbols, key=len, reverse=True)


def _cuts(model: Model) -> Any:
    """Where a text is cut before the model sees it, or None.

    For BPE at user-defined symbols. For what takes whole pieces out of a text (unigram, and BPE
    with `ignore_merges`) also inside the names of control tokens and bytes: those are in the
    vocabulary, and a text that spells `<0x41>` must not become that byte.
    """
    from tokenizers import Regex, pre_tokenizers

    symbols = _symbols(model)
    if model.kind == Kind.BPE and not symbols:
        return None
    steps = []
    if model.kind == Kind.BPE:
        pattern = "|".join(map(_escaped, symbols))
        steps.append(pre_tokenizers.Split(Regex(pattern), behavior="isolated"))
    names = (p.text for p in model.pieces if p.type not in (Type.NORMAL, Type.USER_DEFINED))
    pattern = "|".join(_inside(names, {p.text for p in model.pieces if p.type == Type.NORMAL}))
    steps.append(pre_tokenizers.Split(Regex(pattern), behavior="merged_with_previous"))
    return pre_tokenizers.Sequence(steps)


def _inside(names: Iterable[str], pieces: set[str]) -> Iterator[str]:
    """Patterns of each name's part before a border where a cut changes nothing else.

    No piece crosses it, and a character beside it is known: unknown neighbours are one token.
    """
    crossed = {text[k : k + 2] for text in pieces for k in range(len(text) - 1)}
    tails: dict[str, list[str]] = {}
    for name in names:
        borders = [k for k in range(1, len(name)) if name[k - 1 : k + 1] not in crossed]
        known = (k for k in borders if {name[k - 1], name[k]} & pieces)
        cut = next(known, borders[0] if borders else 1)
        tails.setdefault(name[:cut], []).append(name[cut:])
    for head, found in tails.items():
        yield f"{_escaped(head)}(?={'|'.join(map(_escaped, found))})"


def _escaped(text: str) -> str:
    """For Oniguruma, which knows `re`'s escapes of punctuation; control characters need none."""
    return re.sub(r"[^\w\s]", lambda found: "\\" + found[0], text)

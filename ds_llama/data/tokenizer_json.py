"""A sentencepiece model written once more as `tokenizer.json`, with equal ids.

The `LlamaTokenizer` class of transformers 5 rebuilds its pipeline with a Metaspace pre-tokenizer,
which adds no space of its own to a text that begins with one; sentencepiece always adds it
(`add_dummy_prefix`). Ids then differ for every text that begins with a space. So the pipeline is
written out here, with Prepend and Replace as normalizers as transformers 4 did, and the config
names `PreTrainedTokenizerFast`, which takes it as it is.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ds_llama.data.fingerprint import write_json

if TYPE_CHECKING:
    import sentencepiece

_SPACE = "\u2581"


def write_transformers_files(model: sentencepiece.SentencePieceProcessor, folder: Path) -> None:
    """Write `tokenizer.json` and `tokenizer_config.json` for a BPE model with byte fallback.

    For any other model nothing is written: its merges cannot be told from its scores.
    """
    if not _is_bpe(model) or min(model.bos_id(), model.eos_id(), model.unk_id()) < 0:
        return
    unknown, bos, eos = (
        model.id_to_piece(i) for i in (model.unk_id(), model.bos_id(), model.eos_id())
    )
    pipeline = _pipeline(model, unknown, bos, eos)
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


def _is_bpe(model: sentencepiece.SentencePieceProcessor) -> bool:
    """Scores of BPE pieces are ranks, of unigram pieces log probabilities."""
    scores = model.get_score(list(range(model.get_piece_size())))
    return all(score == int(score) for score in scores)


def _pipeline(model: sentencepiece.SentencePieceProcessor, unknown: str, bos: str, eos: str) -> Any:
    from tokenizers import AddedToken, Tokenizer, decoders, normalizers, processors
    from tokenizers.models import BPE

    vocab = {model.id_to_piece(i): i for i in range(model.get_piece_size())}
    pipeline = Tokenizer(
        BPE(vocab=vocab, merges=merges(model), unk_token=unknown, fuse_unk=True, byte_fallback=True)
    )
    pipeline.normalizer = normalizers.Sequence(
        [normalizers.Prepend(_SPACE), normalizers.Replace(" ", _SPACE)]
    )
    pipeline.decoder = decoders.Sequence(
        [
            decoders.Replace(_SPACE, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    pipeline.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=[(bos, model.bos_id())]
    )
    pipeline.add_special_tokens(
        [AddedToken(token, normalized=False, special=True) for token in (unknown, bos, eos)]
    )
    return pipeline


def merges(model: sentencepiece.SentencePieceProcessor) -> list[tuple[str, str]]:
    """The merges that a sentencepiece BPE model implies, in the order it would apply them.

    The model stores pieces with a score that falls with the merge's rank, and merges whichever
    neighbours form the best-scored piece: so each way to cut a piece in two is a merge.
    """
    plain = [
        i
        for i in range(model.get_piece_size())
        if not (model.is_control(i) or model.is_unknown(i) or model.is_byte(i))
    ]
    ids = {model.id_to_piece(i): i for i in plain}
    cuts = [
        (-model.get_score(whole), ids[piece[:k]], ids[piece[k:]])
        for piece, whole in ids.items()
        for k in range(1, len(piece))
        if piece[:k] in ids and piece[k:] in ids
    ]
    return [(model.id_to_piece(left), model.id_to_piece(right)) for _, left, right in sorted(cuts)]

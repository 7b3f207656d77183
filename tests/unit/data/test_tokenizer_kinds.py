"""What is trained beside plain BPE: unigram, no bytes, symbols. transformers gives equal ids."""

from __future__ import annotations

import json
import random
import struct
from pathlib import Path

import pytest

from ds_llama.cli.main import main
from ds_llama.data import tokenizer as module
from ds_llama.data.tokenizer import Tokenizer, load_tokenizer, train_tokenizer
from ds_llama.data.tokenizer_proto import Kind, Type, parse, with_exact_scores
from ds_llama.data.tokenizer_training import ModelType
from ds_llama.errors import CallError
from tests.unit.data.conftest import sentences
from tests.unit.data.texts import every_script, mixed_texts, one_long_line

SYMBOLS = ("<|x|>", "def f", "\u65e5\u672c\u672c", "\n\n", "  |", 'a,"b')
CONTROL = ("<|im_start|>", "<|im_end|>")
# Small enough for the corpus; unigram finds fewer pieces in it.
KINDS: list[tuple[ModelType, bool, int]] = [
    ("bpe", True, 420),
    ("bpe", False, 160),
    ("unigram", True, 303),
    ("unigram", False, 48),
]


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: f"{kind[0]}-{kind[2]}")
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    kind, byte_fallback, size = request.param
    folder = tmp_path_factory.mktemp("kind")
    (folder / "corpus.txt").write_text("\n".join(sentences(2000)), "utf-8")
    train_tokenizer(
        [folder / "corpus.txt"],
        folder / "trained",
        vocab_size=size,
        model_type=kind,
        byte_fallback=byte_fallback,
        user_defined_symbols=SYMBOLS,
        control_symbols=CONTROL,
        threads=1,
    )
    return folder / "trained"


def with_symbols(count: int) -> list[str]:
    """Symbols beside each other, beside their parts and beside the names of other pieces."""
    draw = random.Random(0)
    parts = [*SYMBOLS, *CONTROL, "<s>", "</s>", "<unk>", "<0x41>", "<", "<|", "|>", "a", ",", '"']
    parts += ["the model", "def ", " ", "  ", "\n", "\u65e5\u672c", "x", "the", " " * 40, "\u2581"]
    return ["".join(draw.choices(parts, k=draw.randrange(1, 9))) for _ in range(count)]


def test_transformers_gives_equal_ids(trained: Path) -> None:
    from transformers import AutoTokenizer

    ours, theirs = load_tokenizer(trained), AutoTokenizer.from_pretrained(trained)
    assert len(theirs) == ours.vocab_size
    for text in with_symbols(100):
        if not any(name in text for name in (*CONTROL, "<s>", "</s>", "<unk>")):
            assert theirs.encode(text) == ours.encode(text, bos=True), repr(text)
    for symbol in (*SYMBOLS, *CONTROL):
        piece = symbol if symbol in CONTROL else symbol.replace(" ", "\u2581")
        assert theirs.convert_tokens_to_ids(piece) == ids_of(trained)[piece]
    # A chat template writes its control symbols as text.
    assert theirs.encode("<|im_start|>", add_special_tokens=False) == [
        ids_of(trained)["<|im_start|>"]
    ]


def ids_of(folder: Path) -> dict[str, int]:
    model = parse((folder / "tokenizer.model").read_bytes())
    return {piece.text: i for i, piece in enumerate(model.pieces)}


def test_the_json_reader_gives_equal_ids(trained: Path) -> None:
    ours, fast = load_tokenizer(trained), load_tokenizer(trained / "tokenizer.json")
    scripts = [text for number, text in enumerate(every_script()) if number % 14 == 0]
    for text in [*mixed_texts(), *with_symbols(600), *scripts, one_long_line(20_000)]:
        ids = ours.encode(text)
        assert fast.encode(text) == ids, repr(text[:60])
        assert fast.decode(ids) == ours.decode(ids) or 0 in ids


def test_symbols_are_single_ids_and_control_symbols_no_text(trained: Path) -> None:
    tokenizer, ids = load_tokenizer(trained), ids_of(trained)
    for symbol in SYMBOLS:
        one = ids[symbol.replace(" ", "\u2581")]
        for text in (symbol, f"the{symbol}model", f"{symbol}{symbol}"):
            assert tokenizer.encode(text).count(one) == text.count(symbol), repr(text)
        assert tokenizer.decode([one]).strip(" ") == symbol.strip(" ")
    control = {ids[name] for name in (*CONTROL, "<s>", "</s>")}
    for text in with_symbols(500):
        assert not control & set(tokenizer.encode(text))


@pytest.mark.parametrize("broken", ["pre_tokenizer", "ignore_merges", "scores"])
def test_a_broken_part_would_be_seen(trained: Path, tmp_path: Path, broken: str) -> None:
    """The twin of the tests above."""
    pipeline = json.loads((trained / "tokenizer.json").read_text("utf-8"))
    unigram = pipeline["model"]["type"] == "Unigram"
    if broken == "pre_tokenizer":
        pipeline["pre_tokenizer"] = None
    elif broken == "scores" and unigram:
        vocab = pipeline["model"]["vocab"]
        pipeline["model"]["vocab"] = [[text, -float(len(text) ** 2)] for text, _ in vocab]
    elif broken == "ignore_merges" and not unigram:
        pipeline["model"]["ignore_merges"] = False
    else:
        return
    (tmp_path / "tokenizer.json").write_text(json.dumps(pipeline), "utf-8")
    ours, fast = load_tokenizer(trained), load_tokenizer(tmp_path / "tokenizer.json")
    assert any(ours.encode(text) != fast.encode(text) for text in with_symbols(300))


def test_a_model_says_what_it_is(trained: Path, request: pytest.FixtureRequest) -> None:
    model = parse((trained / "tokenizer.model").read_bytes())
    name = request.node.callspec.id
    assert model.kind == (Kind.BPE if "bpe" in name else Kind.UNIGRAM)
    assert model.byte_fallback == any(piece.type == Type.BYTE for piece in model.pieces)
    assert (model.plain, model.add_dummy_prefix) == (True, True)
    assert [piece.type for piece in model.pieces[:3]] == [Type.UNKNOWN, Type.CONTROL, Type.CONTROL]
    found = {piece.text for piece in model.pieces if piece.type == Type.USER_DEFINED}
    assert len(found) == (len(SYMBOLS) if model.kind == Kind.BPE else 0)


def test_unigram_scores_are_sums_that_no_rounding_changes() -> None:
    def field(number: int, wire: int, content: bytes) -> bytes:
        return bytes([number << 3 | wire]) + content

    def piece(text: str, score: float, type_: int) -> bytes:
        content = field(1, 2, bytes([len(text)]) + text.encode())
        content += field(2, 5, struct.pack("<f", score)) + field(3, 0, bytes([type_]))
        return field(1, 2, bytes([len(content)]) + content)

    proto = piece("<unk>", 0, 2) + piece("ab", -3.14159, 1) + piece("<x>", 0.5, 4)
    exact = parse(with_exact_scores(proto)).pieces
    assert [(p.text, p.score, p.type) for p in exact] == [
        ("<unk>", 0.0, Type.UNKNOWN),
        ("ab", -201 / 64, Type.NORMAL),
        ("<x>", 0.0, Type.NORMAL),
    ]


def test_a_text_in_parts_has_the_ids_of_the_whole(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [*mixed_texts(), one_long_line(10_000), "a b" * 300, "\u2581 a \u2581b  c " * 90]
    monkeypatch.setattr(module, "_PART_CHARACTERS", 1 << 30)
    whole = [tokenizer.encode(text) for text in texts]
    for size in (1, 7, 100):
        monkeypatch.setattr(module, "_PART_CHARACTERS", size)
        assert [tokenizer.encode(text) for text in texts] == whole
        arrays = tokenizer.encode_batch(texts, bos=True, eos=True)
        assert [list(ids) for ids in arrays] == [[1, *ids, 2] for ids in whole]


def test_pieces_that_reach_over_a_space_keep_a_text_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "corpus.txt").write_text("\n".join(sentences(300)), "utf-8")
    train_tokenizer(
        [tmp_path / "corpus.txt"], tmp_path, vocab_size=350, user_defined_symbols=["the model"]
    )
    monkeypatch.setattr(module, "_PART_CHARACTERS", 1)
    tokenizer = load_tokenizer(tmp_path)
    [symbol] = (i for text, i in ids_of(tmp_path).items() if text == "the\u2581model")
    assert tokenizer.encode("x the model the model").count(symbol) == 2
    monkeypatch.setattr(tokenizer, "_may_cut", True)
    assert tokenizer.encode("x the model the model").count(symbol) < 2


def test_the_command_takes_all_of_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.txt").write_text("\n".join(sentences(300)), "utf-8")
    call = ["data", "tokenizer", str(tmp_path / "a.txt"), "--out", str(tmp_path / "t")]
    call += ["--vocab-size", "42", "--model-type", "unigram", "--no-byte-fallback"]
    call += ["--user-defined-symbol", "<|x|>", "--control-symbol", "<|im_end|>", "--threads", "2"]
    assert main(call) == 0
    model = parse((tmp_path / "t/tokenizer.model").read_bytes())
    assert (model.kind, model.byte_fallback) == (Kind.UNIGRAM, False)
    assert {"<|x|>", "<|im_end|>"} < {piece.text for piece in model.pieces}
    asked = json.loads((tmp_path / "t/training.json").read_text())
    assert (asked["model_type"], asked["user_defined_symbols"]) == ("unigram", ["<|x|>"])
    assert main([*call, "--force"]) == 0
    assert parse((tmp_path / "t/tokenizer.model").read_bytes()) == model
    capsys.readouterr()
    assert main(call) == 0
    assert capsys.readouterr().out.startswith("nothing has changed, kept")
    # Sums over threads: unigram's pieces depend on how many there are.
    assert main([*call, "--threads", "1"]) == 0
    assert capsys.readouterr().out.startswith("wrote")


@pytest.mark.parametrize(
    ("symbols", "words"),
    [
        ([""], "the symbol '' is empty"),
        (["<x>", "<x>"], "the symbol '<x>' is given twice"),
        (["a<s>"], "the symbol 'a<s>' holds <s>, which every tokenizer has"),
        (["<0x0A>"], "the symbol '<0x0A>' holds <0x0A>, which every tokenizer has"),
        (["a\0"], "the symbol 'a\\x00' holds a NUL character"),
    ],
)
def test_symbols_that_cannot_be_are_named(tmp_path: Path, symbols: list[str], words: str) -> None:
    with pytest.raises(CallError) as caught:
        train_tokenizer([tmp_path], tmp_path, vocab_size=300, user_defined_symbols=symbols)
    assert caught.value.what == words
    assert caught.value.where == "--user-defined-symbol, --control-symbol"
    assert "give each symbol once" in caught.value.remedy

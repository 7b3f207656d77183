from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from ds_llama.data.sources import Options
from ds_llama.data.tokenizer import load_tokenizer
from ds_llama.data.tokenizer_training import sample, train_tokenizer
from ds_llama.errors import CallError, ConfigError, DataError, DsLlamaError
from tests.unit.data.conftest import sentences


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.txt"
    path.write_text("\n".join(sentences(300)), "utf-8")
    return path


def pieces(folder: Path) -> list[str]:
    import sentencepiece

    model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    return [model.id_to_piece(i) for i in range(model.get_piece_size())]


def test_same_text_gives_the_same_pieces_with_any_number_of_threads(
    corpus: Path, tmp_path: Path
) -> None:
    for threads in (1, 2):
        train_tokenizer([corpus], tmp_path / f"{threads}", vocab_size=350, threads=threads)
    assert pieces(tmp_path / "1") == pieces(tmp_path / "2")
    assert pieces(tmp_path / "1")[:3] == ["<unk>", "<s>", "</s>"]


def test_unchanged_inputs_are_skipped(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    said: list[str] = []
    assert train_tokenizer([corpus], out, vocab_size=350, progress=said.append)
    assert said == ["reading 1 files", "training 350 pieces on 300 lines"]
    assert not train_tokenizer([corpus], out, vocab_size=350)
    assert train_tokenizer([corpus], out, vocab_size=340)
    assert len(pieces(out)) == 340
    assert train_tokenizer([corpus], out, vocab_size=340, force=True)
    corpus.write_text(corpus.read_text("utf-8") + "\nmore text", "utf-8")
    assert train_tokenizer([corpus], out, vocab_size=340)
    (out / "tokenizer.json").unlink()
    assert train_tokenizer([corpus], out, vocab_size=340)


def test_very_long_lines_are_cut_instead_of_dropped(tmp_path: Path) -> None:
    path = tmp_path / "one-line.txt"
    path.write_text("zebra quagga " * 20000 + "\0")
    train_tokenizer([path], tmp_path / "out", vocab_size=290)
    assert "\u2581zebra" in pieces(tmp_path / "out")


def test_json_lines_and_suffixes_are_sources_too(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src/a.jsonl").write_text('{"body": "zebra zebra zebra quagga quagga"}\n')
    with (tmp_path / "src/a.jsonl").open("a") as file:
        file.write('{"text": "zebra"}\n{')
    options, said = Options(text_field="body"), list[str]()
    train_tokenizer(
        [tmp_path / "src"],
        tmp_path / "out",
        vocab_size=280,
        options=options,
        progress=said.append,
    )
    passed_over = "2 records have no text and are passed over; the first: "
    assert said[1].startswith(f'{passed_over}{tmp_path}/src/a.jsonl:2: no field "body"')
    assert load_tokenizer(tmp_path / "out").decode([280 - 1]) != ""


def expect(
    error: type[DsLlamaError], what: str, remedy: str, *files: Path, size: int = 300
) -> None:
    out = files[0].parent / "out"
    with pytest.raises(error) as caught:
        train_tokenizer(files, out, vocab_size=size, threads=1)
    assert what in caught.value.what
    assert remedy in caught.value.remedy
    assert str(files[0]) in caught.value.where
    assert not out.exists()


def test_mistakes_are_explained(corpus: Path, capfd: pytest.CaptureFixture[str]) -> None:
    empty = corpus.with_name("empty.txt")
    empty.write_text("\n \n")
    expect(DataError, "the corpus has no text", "--text-field", empty)
    missing = corpus.with_name("missing.txt")
    expect(CallError, "there is no file or folder", "name text files", missing)
    expect(DataError, "too small for a vocabulary of 90000", "or less", corpus, size=90000)
    expect(ConfigError, "a vocabulary of 100 pieces has no room", "above 2", corpus, size=100)
    assert capfd.readouterr() == ("", "")


def test_the_largest_possible_vocabulary_is_the_one_that_the_error_names(corpus: Path) -> None:
    with pytest.raises(DataError) as caught:
        train_tokenizer([corpus], corpus.parent / "out", vocab_size=90000)
    largest = int(caught.value.remedy.split(" or less")[0].rpartition(" ")[2])
    train_tokenizer([corpus], corpus.parent / "out", vocab_size=largest)
    assert len(pieces(corpus.parent / "out")) == largest


def test_sampling_is_even_and_repeatable() -> None:
    def lines() -> list[str]:
        return [str(i) for i in range(10)]

    assert sample(iter(lines()), 20, seed=0) == lines()
    assert sample(iter(lines()), 4, seed=1) == sample(iter(lines()), 4, seed=1)
    drawn = Counter(line for seed in range(3000) for line in sample(iter(lines()), 4, seed))
    assert all(1050 < drawn[line] < 1350 for line in lines())  # 1200 expected, deviation 27

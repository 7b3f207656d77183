from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ds_llama.data.tokenizer import JsonTokenizer, Tokenizer, load_tokenizer
from ds_llama.errors import CallError, DataError
from tests.unit.data.conftest import sentences
from tests.unit.data.texts import every_script, mixed_texts, one_long_line

TIKTOKEN = "IQ== 0\nIg== 1\n"


SPACES_FIRST = ["", " ", "  ", "   two", " one", "\u2581literal"]


def test_auto_tokenizer_gives_equal_ids(tokenizer_folder: Path, tokenizer: Tokenizer) -> None:
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(tokenizer_folder)
    assert (theirs.bos_token_id, theirs.eos_token_id, len(theirs)) == (1, 2, 420)
    for text in mixed_texts() + SPACES_FIRST:
        ids = tokenizer.encode(text)
        assert theirs.encode(text, add_special_tokens=False) == ids, repr(text[:60])
        assert theirs.encode(text) == tokenizer.encode(text, bos=True)
        assert theirs.decode(ids, clean_up_tokenization_spaces=False) == tokenizer.decode(ids)


def test_llama_tokenizer_gives_equal_ids_but_for_a_first_space(
    tokenizer_folder: Path, tokenizer: Tokenizer
) -> None:
    """transformers 5 swallows sentencepiece's dummy prefix when the text begins with a space."""
    from transformers import LlamaTokenizer

    theirs = LlamaTokenizer.from_pretrained(tokenizer_folder)
    for text in mixed_texts():
        if not text.startswith(" "):
            assert theirs.encode(text) == tokenizer.encode(text, bos=True), repr(text[:60])
    assert theirs.encode("   two") != tokenizer.encode("   two", bos=True)


def test_json_reader_gives_equal_ids(tokenizer_folder: Path, tokenizer: Tokenizer) -> None:
    ours = load_tokenizer(tokenizer_folder / "tokenizer.json")
    assert isinstance(ours, JsonTokenizer)
    assert (ours.vocab_size, ours.bos_id, ours.eos_id, ours.pad_id) == (420, 1, 2, None)
    for text in [*mixed_texts(), *SPACES_FIRST, "a <s> b </s><unk>"]:
        ids = tokenizer.encode(text, bos=True, eos=True)
        assert ours.encode(text, bos=True, eos=True) == ids, repr(text[:60])
        assert ours.decode(ids) == tokenizer.decode(ids)


def test_every_script_and_a_line_of_a_megabyte_have_equal_ids(
    tokenizer_folder: Path, tokenizer: Tokenizer
) -> None:
    """The line is cut inside our `encode`, and not in theirs."""
    from transformers import AutoTokenizer, LlamaTokenizer

    theirs = AutoTokenizer.from_pretrained(tokenizer_folder)
    scripts = list(every_script())
    assert len(set("".join(scripts))) > 45_000
    for text in scripts:
        ids = tokenizer.encode(text)
        assert theirs.encode(text, add_special_tokens=False) == ids, repr(text[:60])
        assert tokenizer.decode(ids) == text.replace("\u2581", " ")
    line = one_long_line(1_000_100).lstrip()
    llama = LlamaTokenizer.from_pretrained(tokenizer_folder)
    assert llama.encode(line) == tokenizer.encode(line, bos=True)


@pytest.mark.parametrize("broken", ["normalizer", "merges", "byte_fallback", "decoder"])
def test_a_broken_pipeline_would_be_seen(
    tokenizer_folder: Path, tokenizer: Tokenizer, tmp_path: Path, broken: str
) -> None:
    """The twin of the tests above: each part that is written matters to the texts they use."""
    pipeline = json.loads((tokenizer_folder / "tokenizer.json").read_text("utf-8"))
    if broken == "normalizer":
        del pipeline["normalizer"]["normalizers"][0]
    elif broken == "merges":
        pipeline["model"]["merges"].reverse()
    elif broken == "byte_fallback":
        pipeline["model"]["byte_fallback"] = False
    else:
        pipeline["decoder"] = None
    (tmp_path / "tokenizer.json").write_text(json.dumps(pipeline), "utf-8")
    ours = load_tokenizer(tmp_path / "tokenizer.json")
    texts = [text for text in mixed_texts() if text]
    assert any(ours.encode(t) != tokenizer.encode(t) for t in texts) == (broken != "decoder")
    assert any(ours.decode(tokenizer.encode(t)) != t for t in texts) == (broken == "decoder")


@given(text=st.text().filter(lambda text: "\u2581" not in text))
def test_every_text_comes_back(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text, bos=True, eos=True)
    assert (ids[0], ids[-1]) == (1, 2)
    assert tokenizer.decode(ids) == text


def test_control_tokens_in_text_are_characters(tokenizer: Tokenizer) -> None:
    assert not {0, 1, 2} & set(tokenizer.encode("<s> </s> <unk>"))


def test_llama_settings_show_in_the_pieces(tokenizer: Tokenizer) -> None:
    """Digits apart, indentation as one piece, an unseen character as its bytes."""
    assert len(tokenizer.encode("12345")) == len(tokenizer.encode("1")) + 4
    assert len(tokenizer.encode("a" + " " * 9 + "b")) < len(tokenizer.encode("ab")) + 6
    smile = tokenizer.encode("😀")[1:]
    assert [i - 3 for i in smile] == list("😀".encode())


@pytest.mark.parametrize("name", ["tokenizer.model", "tokenizer.json"])
def test_save_writes_what_loads_with_equal_ids(
    tokenizer_folder: Path, tokenizer: Tokenizer, tmp_path: Path, name: str
) -> None:
    load_tokenizer(tokenizer_folder / name).save(tmp_path / "out")
    assert load_tokenizer(tmp_path / "out").encode("def f:\n  x") == tokenizer.encode("def f:\n  x")
    assert (tmp_path / "out/tokenizer_config.json").is_file()


def test_save_of_a_lone_model_writes_transformers_files(
    tokenizer_folder: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    lone = tmp_path / "other-name.model"
    lone.write_bytes((tokenizer_folder / "tokenizer.model").read_bytes())
    load_tokenizer(lone).save(tmp_path / "out")
    saved = load_tokenizer(tmp_path / "out/tokenizer.json")
    assert saved.encode(" def", bos=True) == tokenizer.encode(" def", bos=True)


def test_save_keeps_the_files_of_the_original(tokenizer_folder: Path, tmp_path: Path) -> None:
    load_tokenizer(tokenizer_folder).save(tmp_path / "first")
    (tmp_path / "first/chat_template.jinja").write_text("{{ messages }}")
    load_tokenizer(tmp_path / "first").save(tmp_path / "second")
    assert (tmp_path / "second/chat_template.jinja").read_text() == "{{ messages }}"


def test_sha256_is_that_of_the_file(tokenizer: Tokenizer) -> None:
    assert len(tokenizer.sha256) == 64
    assert tokenizer.sha256 == load_tokenizer(tokenizer.path).sha256


@pytest.mark.parametrize("name", ["nothing", "."])
def test_no_tokenizer_says_what_to_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(CallError) as caught:
        load_tokenizer(tmp_path / name)
    assert caught.value.what == f"there is no tokenizer at {tmp_path / name}"
    assert "ds-llama data tokenizer" in caught.value.remedy


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("tokenizer.model", "no protobuf", "sentencepiece cannot parse it"),
        ("tokenizer.model", TIKTOKEN, "byte 0x00 is no token: the list is not whole"),
        ("tokenizer.json", '{"model": 1}', "no tokenizer that can be read"),
    ],
)
def test_foreign_files_are_named(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str, content: str, words: str
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError) as caught:
        load_tokenizer(tmp_path)
    assert words in caught.value.what
    assert caught.value.where == str(tmp_path / name)
    assert "tokenizer.json" in caught.value.remedy
    assert capfd.readouterr().err == ""


def test_a_tiktoken_file_beside_a_tokenizer_json_is_passed_over(
    tokenizer_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "tokenizer.model").write_text(TIKTOKEN)
    fast = (tokenizer_folder / "tokenizer.json").read_bytes()
    (tmp_path / "tokenizer.json").write_bytes(fast)
    assert isinstance(load_tokenizer(tmp_path), JsonTokenizer)


def test_a_tokenizer_without_bos_says_so_when_it_is_asked_for(
    tokenizer_folder: Path, tmp_path: Path
) -> None:
    fast = tmp_path / "tokenizer.json"
    fast.write_bytes((tokenizer_folder / "tokenizer.json").read_bytes())
    lone = load_tokenizer(fast)
    assert lone.bos_id is None
    with pytest.raises(DataError) as caught:
        lone.encode("a", bos=True)
    assert caught.value.what == "the tokenizer has no BOS token"
    assert "--no-bos" in caught.value.remedy
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"bos_token": {"content": "<s>"}}))
    assert load_tokenizer(fast).bos_id == 1


def test_an_id_that_is_not_in_the_vocabulary_is_named(tokenizer: Tokenizer) -> None:
    with pytest.raises(DataError) as caught:
        tokenizer.decode([5, 420])
    assert caught.value.what == "id 420 is not in the tokenizer's vocabulary of 420"


def test_a_unigram_model_is_saved_without_merges_that_it_has_not(tmp_path: Path) -> None:
    import sentencepiece

    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences(200)),
        model_prefix=str(tmp_path / "u"),
        model_type="unigram",
        vocab_size=60,
        hard_vocab_limit=False,
        minloglevel=4,
    )
    unigram = load_tokenizer(tmp_path / "u.model")
    unigram.save(tmp_path / "out")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["tokenizer.model"]
    assert load_tokenizer(tmp_path / "out").encode("model loss") == unigram.encode("model loss")

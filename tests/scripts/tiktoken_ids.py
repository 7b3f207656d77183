"""Make what Llama 3's kind of tokenizer is compared with: ids by tiktoken itself.

    python tests/scripts/tiktoken_ids.py tests/unit/data/tiktoken     (needs tiktoken)

FOLDER/tokenizer.model is a small list of tokens as Meta releases a large one, FOLDER/ids.json the
ids of hard texts. Control tokens are numbered from the last rank on, by Meta's names of 3.1.
"""

from __future__ import annotations

import base64
import json
import random
import sys
from pathlib import Path

PATTERN = (  # Meta's, whose tokenizer.py has it as pat_str
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CONTROL = ["<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>"]
TEXTS = [
    "",
    "hello world",
    " leading and trailing  ",
    "It's we'LL I'M they'Ve 'S '\u017f x'd o'clock",
    "1 12 123 1234 1234567.890 ١٢٣٤٥ Ⅷ½²³ 12a3",
    "def f(x):\n    if x:\n\t\treturn 1234567890.5\r\n\r\n  \n\n   x",
    "   \n \r\n\t \u00a0\u3000\u2028 \u0085 \u200b\ufeff",
    "日本語 中文 한국어 العربية עברית ไทย हिन्दी",
    "😀👩\u200d👩\u200d👧\u200d👦🏳️\u200d🌈 é e\u0301 ﬁ",
    "".join(map(chr, range(32))) + "\x7f",
    "broken \ufffd utf-8 \ufffe",
    "<|begin_of_text|>hi<|eot_id|><s></s>",
    "-" * 79 + "\n" + "=" * 50 + "!?!?...\n\n",
    "a" * 200 + " " * 100 + "b",
    "the model token shard window rank step loss " * 5,
    "__init__ CamelCase snake_case https://a.b/c?d=e&f#g $x^{2}$",
]


def texts() -> list[str]:
    """Those above, and drawn ones of characters that patterns and merges are about."""
    draw, found = random.Random(0), list(TEXTS)
    arabic = "\u0660\u0661"
    kinds = [f"ab '\n\r\tsST1K{arabic[0]} \u00a0é.-_", "lostkenrdwami ", f"0123456789 {arabic}."]
    for letters in [*kinds, "日本é 😀a"]:
        found += ["".join(draw.choices(letters, k=60)) for _ in range(8)]
    return found


def main(folder: Path) -> None:
    import tiktoken
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    ours = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(PATTERN), "isolated")
    bytewise = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    ours.pre_tokenizer = pre_tokenizers.Sequence([split, bytewise])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, show_progress=False)
    ours.train_from_iterator(texts(), trainer)
    byte_of = {letter: byte for byte, letter in bytes_to_unicode().items()}
    names = sorted(ours.get_vocab().items(), key=lambda item: item[1])
    ranks = {bytes(byte_of[letter] for letter in name): rank for name, rank in names}
    folder.mkdir(exist_ok=True)
    lines = [f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in ranks.items()]
    (folder / "tokenizer.model").write_text("".join(lines))
    special = {name: len(ranks) + number for number, name in enumerate(CONTROL)}
    theirs = tiktoken.Encoding(
        "small", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens=special
    )
    found = {text: theirs.encode_ordinary(text) for text in texts()}
    content = {"tiktoken": tiktoken.__version__, "ids": found}
    (folder / "ids.json").write_text(json.dumps(content, ensure_ascii=True) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""A small task with known answers, made up: what kind of thing is in a sentence?

    python -m ds_llama.data.example DIR     writes DIR/train.jsonl and DIR/held-out.jsonl

Each row is a question, as `ds-llama eval` and `ds-llama data prepare --format rows` read it. One
word of a sentence belongs to one of four kinds, at any place among words that say nothing; a
quarter of the answers is right by chance. No sentence is in both files.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

KINDS = {
    "animal": "otter badger falcon lizard salmon beetle heron weasel donkey rabbit spider pigeon",
    "tool": "hammer chisel spanner pliers ladder shovel drill mallet wrench rasp trowel clamp",
    "food": "bread cheese carrot noodle pepper lentil muffin radish waffle turnip pickle butter",
    "cloth": "jacket mitten scarf trousers bonnet apron sweater sandal blouse collar waistcoat hat",
}
_OTHERS = (
    "the a one that this we they you found saw left took put near under behind beside over old new "
    "small large quiet today again once there here and then with without house river garden road"
)
_TRAIN, _HELD_OUT, _SEED = 4000, 400, 0


def rows(seed: int = _SEED) -> Iterator[dict[str, Any]]:
    """Questions without end, no sentence twice."""
    draw, seen = random.Random(seed), set[str]()
    every = _OTHERS.split()
    words = [(word, kind) for kind, listed in KINDS.items() for word in listed.split()]
    while True:
        word, kind = draw.choice(words)
        others = draw.choices(every, k=draw.randrange(4, 9))
        place = draw.randrange(len(others) + 1)
        sentence = " ".join([*others[:place], word, *others[place:]])
        if sentence not in seen:
            seen.add(sentence)
            yield {"prompt": f"{sentence}\nkind:", "choices": list(KINDS), "answer": kind}


def write(folder: Path, train: int = _TRAIN, held_out: int = _HELD_OUT) -> list[Path]:
    """Both files; the same call writes the same bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn, written = rows(), []
    for name, count in (("train.jsonl", train), ("held-out.jsonl", held_out)):
        lines = [json.dumps(next(drawn)) + "\n" for _ in range(count)]
        written.append(folder / name)
        written[-1].write_text("".join(lines), "utf-8")
    return written


if __name__ == "__main__":
    for path in write(Path(sys.argv[1])):
        print(path)

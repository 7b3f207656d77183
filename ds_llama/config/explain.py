"""The stories behind the codes of `ds-llama lint`: docs/lint.md, read section by section.

### code
`severity` One sentence.

What happens, why, where DeepSpeed does it, what to do.

```json
what triggers it
```
```json
what does not
```
"""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass
from functools import cache

from ds_llama.config import shipped
from ds_llama.config.problems import did_you_mean
from ds_llama.errors import CallError


@dataclass(frozen=True)
class Story:
    """One code. `examples`: a JSON that triggers it, then one that does not."""

    code: str
    severity: str
    summary: str
    body: str
    examples: tuple[str, ...]

    def text(self) -> str:
        """For a terminal: the prose, then `wrong` and `right`."""
        lines = [f"{self.code} ({self.severity})", "", self.summary]
        for paragraph in self.body.split("\n\n"):
            lines += ["", textwrap.fill(paragraph, 96)] if paragraph else []
        for word, example in zip(("wrong", "right"), self.examples, strict=False):
            lines += ["", f"{word}:", textwrap.indent(example, "  ")]
        return "\n".join(lines)


@cache
def stories() -> dict[str, Story]:
    """Every story by its code, in the order of the page."""
    page = shipped.codes().read_text(encoding="utf-8")
    sections = re.split(r"^### ", page, flags=re.MULTILINE)[1:]
    found = [_story(re.split(r"^## ", section, flags=re.MULTILINE)[0]) for section in sections]
    return {story.code: story for story in found}


def story(code: str) -> Story:
    """The story of that code; CallError with the nearest one."""
    known = stories()
    if code not in known:
        raise CallError(
            f"there is no code {code!r}",
            where="--explain",
            remedy=f"{did_you_mean(code, known)} (`ds-llama lint --explain` lists all)",
        )
    return known[code]


def listing() -> str:
    """Every code with its severity and its sentence, a line each."""
    known = stories().values()
    width = max(len(story.code) for story in known)
    return "\n".join(f"{s.code:<{width}}  {s.severity:<7}  {s.summary}" for s in known)


def _story(section: str) -> Story:
    code, _, rest = section.partition("\n")
    examples = tuple(
        example.strip() for example in re.findall(r"```json\n(.*?)```", rest, flags=re.DOTALL)
    )
    prose = re.sub(r"```json\n.*?```", "", rest, flags=re.DOTALL).strip()
    first, _, body = prose.partition("\n\n")
    severity, _, summary = first.partition(" ")
    return Story(code.strip(), severity.strip("`"), summary, body.strip(), examples)

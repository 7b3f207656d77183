"""docs/lint.md: a section for each code, whose examples do what they say."""

from __future__ import annotations

import json
import re
from pathlib import Path

import deepspeed
import pytest

from ds_llama.config import explain
from ds_llama.config.explain import stories
from ds_llama.config.lint import Linter
from ds_llama.errors import CallError
from tests.unit.config.lint_codes import all_codes

# What a Linter may be told, the least first; an example is for the first under which it triggers.
KNOWN = [{}, {"device": "cpu"}, {"device": "cuda"}, {"world_size": 3}, {"world_size": 12}]
KNOWN += [{"dialect": "huggingface"}]
# Of the file, of the installed release, and of errors that their own tests read.
WITHOUT_EXAMPLE = {"unreadable", "newer-key", "invalid"}


def found(content, code, known):
    problems = Linter(**known).problems(content, Path("run.json"))
    return [problem for problem in problems if problem.code == code]


def test_every_code_has_a_story_and_every_story_a_code():
    assert set(stories()) == all_codes()
    assert len(stories()) > 120


@pytest.mark.parametrize("code", sorted(all_codes() - WITHOUT_EXAMPLE))
def test_the_first_example_triggers_the_code_and_the_second_does_not(code):
    story = stories()[code]
    wrong, right = (json.loads(example) for example in story.examples)
    for known in KNOWN:
        problems = found(wrong, code, known)
        if problems:
            said = f"Lint says: {problems[0].message}. Remedy: {problems[0].remedy}"
            assert said in story.body, f"write into docs/lint.md: {said}"
            assert story.severity == problems[0].severity
            assert found(right, code, known) == []
            return
    pytest.fail(f"{story.examples[0]} does not give {code}")


def test_every_story_is_told():
    for story in stories().values():
        assert story.severity in ("error", "warning"), story.code
        assert story.summary.endswith("."), story.code
        assert len(story.summary) < 100, story.code
        assert story.body or story.code in WITHOUT_EXAMPLE, story.code


def test_sources_are_there():
    folder = Path(deepspeed.__file__).parent
    page = explain.shipped.codes().read_text()
    cited = set(re.findall(r"`([\w/]+\.py):(\d+)`", page))
    assert len(cited) > 30
    for name, line in cited:
        assert len((folder / name).read_text().splitlines()) >= int(line), name


def test_listing_has_a_line_for_each():
    lines = explain.listing().splitlines()
    assert [line.split()[0] for line in lines] == list(stories())


def test_a_story_is_read_in_a_terminal():
    text = explain.story("half-at-stage-0").text()
    assert text.startswith("half-at-stage-0 (error)\n\nbf16 or fp16 at stage 0 takes")
    assert "runtime/fp16/unfused_optimizer.py:425" in text
    assert 'wrong:\n  {"bf16": {"enabled": true}}\n\nright:\n' in text
    assert max(len(line) for line in text.splitlines()) <= 110


def test_an_unknown_code_gets_the_nearest():
    with pytest.raises(CallError) as caught:
        explain.story("half-at-stage")
    assert "did you mean 'half-at-stage-0'?" in caught.value.remedy

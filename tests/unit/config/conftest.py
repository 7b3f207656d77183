from __future__ import annotations

import json

import pytest


@pytest.fixture
def write(tmp_path):
    """Write a JSON file into a fresh folder and give its path."""

    def write(name, content):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
        return path

    return write


@pytest.fixture
def tree():
    """The smallest run there is."""
    return {"model": {"preset": "tiny"}, "data": {"train": "shards/train"}}

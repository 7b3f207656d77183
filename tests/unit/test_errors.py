from __future__ import annotations

import pickle

import pytest

from ds_llama import errors

TREE = [
    value
    for value in vars(errors).values()
    if isinstance(value, type)
    and issubclass(value, errors.DsLlamaError)
    and value is not errors.ConfigErrors
]


@pytest.mark.parametrize("kind", TREE)
def test_every_member_says_what_where_and_remedy(kind):
    error = kind("it broke", where="file:key", remedy="mend it")
    assert str(error) == "error: it broke\nwhere: file:key\nremedy: mend it"
    assert error.exit_code == (2 if kind is errors.CallError else 1)


@pytest.mark.parametrize("kind", TREE)
def test_members_survive_pickling_between_processes(kind):
    copy = pickle.loads(pickle.dumps(kind("it broke", where="w", remedy="r")))
    assert type(copy) is kind
    assert (copy.what, copy.where, copy.remedy) == ("it broke", "w", "r")


def test_several_problems_are_one_exception():
    parts = [errors.ConfigError(f"w{i}", where=f"f:{i}", remedy="r") for i in range(2)]
    error = errors.ConfigErrors(parts)
    assert isinstance(error, errors.ConfigError)
    assert str(error) == f"{parts[0]}\n\n{parts[1]}"
    assert [e.what for e in pickle.loads(pickle.dumps(error)).errors] == ["w0", "w1"]

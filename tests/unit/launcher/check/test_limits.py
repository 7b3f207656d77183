"""How long a check may take, and what is said to a wrong DS_LLAMA_CHECK_S."""

from __future__ import annotations

import pytest

from ds_llama.errors import CallError
from ds_llama.launcher.check.limits import Limits
from ds_llama.launcher.check.reach import ssh


def test_a_check_takes_10_seconds_and_an_all_reduce_20() -> None:
    limits = Limits.of({"DS_LLAMA_CHECK_S": ""})
    assert limits == Limits.of({}) == Limits(10.0)
    assert (limits.facts_s, limits.pairs_s, limits.pair_s) == (6.5, 9.0, 1.5)
    assert (limits.allreduce_s, limits.join_s, limits.connect_s) == (20.0, 15.0, 4)


def test_slow_hosts_get_more() -> None:
    """Each part as much more; ssh gives up when the whole does not have the time any more."""
    limits = Limits.of({"DS_LLAMA_CHECK_S": "30"})
    assert (limits.facts_s, limits.pairs_s, limits.allreduce_s) == (19.5, 27.0, 60.0)
    words = ssh(limits=limits).words("node1", ["true"])
    assert "-oConnectTimeout=12" in words
    fault = ssh(limits=limits).explain("node1", "ssh: connect to host: Connection timed out")
    assert fault.message == "it does not answer ssh within 12 s"


@pytest.mark.parametrize("text", ["soon", "0", "-5", "1e9", "nan", "10 s"])
def test_what_is_no_number_of_seconds(text: str) -> None:
    with pytest.raises(CallError) as caught:
        Limits.of({"DS_LLAMA_CHECK_S": text})
    assert caught.value.what == f"DS_LLAMA_CHECK_S={text} is not 1 to 100 seconds"
    assert caught.value.where == "DS_LLAMA_CHECK_S"
    assert caught.value.remedy.startswith("give a number, or leave it away")

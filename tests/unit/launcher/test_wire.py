"""Messages are told from noise; routes and interfaces are those of the system."""

from __future__ import annotations

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ds_llama.launcher import routes
from ds_llama.launcher.wire import pack, unpack


@given(st.text(), st.dictionaries(st.text(st.characters(categories=["Ll"]), min_size=1), st.text()))
def test_a_message_is_one_line_and_comes_back(kind: str, content: dict[str, str]) -> None:
    content.pop("kind", None)
    line = pack(kind, **content)
    assert line.count(b"\n") == 1
    assert unpack(line) == (kind, content)


@given(st.binary())
def test_noise_is_no_message(noise: bytes) -> None:
    assert unpack(noise) is None


@pytest.mark.parametrize("noise", [b"[]", b"1", b'{"ds_llama": 1}', b'{"a": 1}', b"Welcome to x"])
def test_what_looks_like_one_is_none(noise: bytes) -> None:
    assert unpack(noise) is None


def test_the_way_to_oneself() -> None:
    assert routes.source("127.0.0.1") == "127.0.0.1"
    assert routes.interface("127.0.0.1") == "lo"
    assert routes.interface("192.0.2.1") is None
    assert routes.master([]) == "127.0.0.1"
    found = routes.for_collectives("127.0.0.1", {"NCCL_SOCKET_IFNAME": "ib0"})
    assert found == {"GLOO_SOCKET_IFNAME": "lo"}


def test_a_free_port_is_free() -> None:
    with socket.create_server(("127.0.0.1", routes.free_port())):
        pass

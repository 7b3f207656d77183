from __future__ import annotations

import json
import struct
import tempfile
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ds_llama.errors import CheckpointError
from ds_llama.weights import tensorfile
from ds_llama.weights.tensorfile import DTYPES, Reader, Spec, Writer

shapes = st.lists(st.integers(0, 5), max_size=3).map(tuple)
contents = st.dictionaries(
    st.text(min_size=1, max_size=8).filter(lambda name: name != "__metadata__"),
    st.tuples(st.sampled_from(sorted(DTYPES)), shapes),
    max_size=5,
)


def _tensor(code: str, shape: tuple[int, ...]) -> torch.Tensor:
    return (torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 100).to(DTYPES[code])


@settings(max_examples=50, deadline=None)
@given(contents)
def test_the_reference_implementation_reads_what_is_written_and_back(content) -> None:
    tensors = {name: _tensor(*what) for name, what in content.items()}
    with tempfile.TemporaryDirectory() as folder:
        mine, reference = Path(folder) / "mine", Path(folder) / "reference"
        tensorfile.write(mine, tensors.items())
        loaded = safetensors.torch.load_file(mine)
        assert loaded.keys() == tensors.keys()
        assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)
        safetensors.torch.save_file(tensors, reference)
        with Reader(reference) as reader:
            for name, tensor in tensors.items():
                assert reader.specs[name] == Spec(tensor.dtype, tuple(tensor.shape))
                assert torch.equal(reader.read(name), tensor.reshape(-1))


@given(st.integers(0, 24), st.integers(0, 24))
def test_any_range_of_elements(first: int, second: int) -> None:
    start, stop = sorted((first, second))
    tensor = torch.arange(24, dtype=torch.bfloat16).view(2, 3, 4)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        tensorfile.write(path, [("pad", torch.ones(3)), ("x", tensor)])
        with Reader(path) as reader:
            assert torch.equal(reader.read("x", start, stop), tensor.reshape(-1)[start:stop])


def test_a_view_that_is_not_contiguous_is_written_row_major(tmp_path: Path) -> None:
    tensor = torch.arange(6.0).view(2, 3).t()
    tensorfile.write(tmp_path / "file", [("x", tensor)])
    assert torch.equal(safetensors.torch.load_file(tmp_path / "file")["x"], tensor)


def test_a_tensor_that_was_not_written_is_noticed(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "file", {"x": Spec(torch.float32, (2,))})
    with pytest.raises(AssertionError, match="x was not written"):
        writer.close()
    writer.abandon()


def _file(header: object, data: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is no safetensors file"),
        (b"\x80\x02}q\x00.pickle", "is no safetensors file"),
        (struct.pack("<Q", 1 << 62) + b"{}", "is no safetensors file"),
        (struct.pack("<Q", 2) + b"{x", "has a damaged header"),
        (_file([1]), "has a damaged header"),
        (_file({"x": {**ENTRY, "dtype": "F8_E4M3"}}, b"12345678"), "holds x as F8_E4M3"),
        (_file({"x": {**ENTRY, "shape": [3]}}, b"12345678"), "x does not fill its bytes"),
        (_file({"x": {**ENTRY, "shape": [-1, -2]}}, b"12345678"), "x does not fill its bytes"),
        (_file({"x": {**ENTRY, "data_offsets": [-8, 0]}}, b"12345678"), "x does not fill its"),
        (_file({"x": ENTRY}, b"1234"), "is cut off: x ends beyond it"),
        (_file({"x": {**ENTRY, "shape": ["2"]}}, b"12345678"), "a size of x is no whole number"),
        (_file({"x": {**ENTRY, "data_offsets": [0.0, 8]}}, b"12345678"), "a size of x is no whole"),
        (_file({"x": ENTRY, "y": ENTRY}, b"12345678"), "y begins where it should not"),
        (_file({"x": {**ENTRY, "data_offsets": [4, 12]}}, bytes(12)), "x begins where it should"),
        (_file({"x": ENTRY}, bytes(12)), "is damaged: its last 4 bytes are of no tensor"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        Reader(path)
    assert caught.value.what.startswith(f"model.safetensors {message}") or message in str(
        caught.value
    )
    assert caught.value.where == str(path)
    assert caught.value.remedy == "copy or download the file again"


def test_a_file_that_shrinks_while_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "file"
    tensorfile.write(path, [("x", torch.ones(8))])
    with Reader(path) as reader:
        path.write_bytes(path.read_bytes()[:-4])
        with pytest.raises(CheckpointError, match="ends inside x"):
            reader.read("x")


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be opened: No such file"):
        Reader(tmp_path / "none")

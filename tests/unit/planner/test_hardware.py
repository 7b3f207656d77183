from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ds_llama.errors import CallError
from ds_llama.planner import hardware

# Names as drivers report them, with dense bf16 (fp16 where there is no bf16) TFLOP/s.
REPORTED = {
    "Tesla V100-SXM2-16GB": ("v100-sxm-16gb", 125.0),
    "Tesla V100-SXM3-32GB": ("v100-sxm-32gb", 125.0),
    "Tesla V100-PCIE-32GB": ("v100-pcie-32gb", 112.0),
    "Tesla V100S-PCIE-32GB": ("v100s-pcie", 130.0),
    "Tesla T4": ("t4", 65.0),
    "A100-SXM4-40GB": ("a100-sxm-40gb", 312.0),
    "NVIDIA A100-SXM4-80GB": ("a100-sxm-80gb", 312.0),
    "NVIDIA A100-PCIE-40GB": ("a100-pcie-40gb", 312.0),
    "NVIDIA A100 80GB PCIe": ("a100-pcie-80gb", 312.0),
    "NVIDIA A10": ("a10", 125.0),
    "NVIDIA L4": ("l4", 121.0),
    "NVIDIA L40": ("l40", 181.05),
    "NVIDIA L40S": ("l40s", 362.05),
    "NVIDIA GeForce RTX 4090": ("rtx-4090", 165.2),
    "NVIDIA H100 80GB HBM3": ("h100-sxm", 989.5),
    "NVIDIA H100 PCIe": ("h100-pcie", 756.5),
    "NVIDIA H100 NVL": ("h100-nvl", 835.5),
    "NVIDIA H200": ("h200-sxm", 989.5),
    "NVIDIA H200 NVL": ("h200-nvl", 835.5),
    "NVIDIA GH200 480GB": ("gh200", 989.5),
    "NVIDIA B200": ("b200", 2250.0),
    "NVIDIA GB200": ("gb200", 2500.0),
    "NVIDIA B300 SXM6 AC": ("b300", 2250.0),
    "AMD Instinct MI250X": ("mi250x", 191.5),
    "AMD Instinct MI300X": ("mi300x", 1307.4),
}

# Each is near a known name and is not that device.
UNKNOWN = (
    "",
    "cpu",
    "Intel(R) Xeon(R) Platinum 8481C",
    "NVIDIA A100-SXM4-40GB MIG 1g.5gb",
    "NVIDIA H100 80GB HBM3 MIG 3g.40gb",
    "NVIDIA A100-SXM-64GB",
    "NVIDIA A10G",
    "NVIDIA H100 64GB HBM2",
    "NVIDIA H1000",
    "NVIDIA GeForce RTX 4090 Laptop GPU",
    "NVIDIA GeForce RTX 4090 D",
    "NVIDIA GeForce RTX 3090 Ti",
    "NVIDIA L400",
    "NVIDIA B100",
)


@pytest.mark.parametrize(("name", "expected"), REPORTED.items())
def test_reported_names_find_their_row(name: str, expected: tuple[str, float]) -> None:
    row = hardware.reported(name)
    assert row is not None
    assert row.key == expected[0]
    assert (row.tflops["bfloat16"] or row.tflops["float16"]) == expected[1]


@pytest.mark.parametrize("name", UNKNOWN)
def test_unknown_is_none_never_a_guess(name: str) -> None:
    assert hardware.reported(name) is None
    assert hardware.peak_flops(name, "bfloat16") is None


def test_no_name_is_claimed_twice() -> None:
    import re

    for name in REPORTED:
        rows = [row.key for row in hardware.table() if re.fullmatch(row.pattern, name.lower())]
        assert len(rows) == 1, (name, rows)


def test_every_row_has_a_source_and_ordered_peaks() -> None:
    assert len({row.key for row in hardware.table()}) == len(hardware.table())
    for row in hardware.table():
        assert row.source.startswith(("NVIDIA", "AMD"))
        assert row.tflops["float16"] is not None
        assert row.tflops["float32"] is not None
        assert row.tflops["float16"] > row.tflops["float32"]
        if row.tflops["tf32"] is not None:
            # every generation's tensor cores do half of bf16's rate in TF32
            assert row.tflops["tf32"] == pytest.approx(row.tflops["float16"] / 2, rel=0.02)


def test_peak_by_dtype() -> None:
    row = hardware.find("a100")
    assert row.peak_flops("bfloat16") == 312e12
    assert row.peak_flops("torch.float16") == 312e12
    assert row.peak_flops("float32") == 19.5e12
    assert row.peak_flops("float32", tf32=True) == 156e12
    assert row.peak_flops("float64") is None
    volta = hardware.find("v100")
    assert volta.peak_flops("bf16") is None
    assert volta.peak_flops("float32", tf32=True) == 15.7e12


def test_unknown_key_names_the_nearest() -> None:
    with pytest.raises(CallError) as caught:
        hardware.find("h10")
    assert caught.value.what == 'unknown hardware "h10"'
    assert caught.value.where == "--hardware"
    assert 'did you mean "h100' in caught.value.remedy
    assert "known: a10, a100" in caught.value.remedy


@given(st.text(max_size=40))
def test_any_text_is_safe(name: str) -> None:
    assert hardware.reported(name) is None or hardware.peak_flops(name, "fp16")


def test_imports_no_torch() -> None:
    code = "import sys, ds_llama.planner.hardware; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_figure_has_a_source() -> None:
    for row in hardware.table():
        for name in ("matmul_fraction", "attention_fraction", "memory_bytes"):
            assert (getattr(row, name) is None) == (name not in row.sources), (row.key, name)
        for name in row.__dataclass_fields__:
            if name.endswith("bytes_per_s"):
                assert (getattr(row, name) is None) == (name not in row.sources), (row.key, name)


@pytest.mark.parametrize(
    ("short", "key"), [("a100", "a100-sxm-80gb"), ("V100", "v100-sxm-32gb"), (" h200", "h200-sxm")]
)
def test_short_names(short: str, key: str) -> None:
    assert hardware.find(short).key == key


@pytest.mark.parametrize(
    ("text", "rate"), [("400Gb/s", 50e9), ("50GB/s", 50e9), ("100 Gbps", 12.5e9), (5e9, 5e9)]
)
def test_rates_in_bits_and_bytes(text: str | float, rate: float) -> None:
    assert hardware.parse_rate(text) == rate
    found = hardware.find("h100").with_internode(text)
    assert found.internode_bytes_per_s == rate
    assert found.sources["internode_bytes_per_s"] == "given"


@pytest.mark.parametrize("text", ["fast", "400", "0Gb/s", "-1Gb/s", "400Gb", "1e3GB/s", ""])
def test_what_is_no_rate(text: str) -> None:
    with pytest.raises(CallError) as caught:
        hardware.parse_rate(text)
    assert caught.value.what == f"{text!r} is not a transfer rate"
    assert caught.value.where == "--internode"
    assert caught.value.remedy == "write bits as in 400Gb/s, or bytes as in 50GB/s"


PROFILE = {"key": "cpu", "tflops": {"float32": 0.1}, "sources": {"tflops": "measured"}}


def test_a_measured_profile_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "ds_llama" / "hardware.json"
    path.parent.mkdir()
    path.write_text(json.dumps(PROFILE))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name in ("local", str(path)):
        found = hardware.find(name)
        assert found.measured
        assert found.peak_flops("fp32") == pytest.approx(1e11)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (None, "no hardware profile there: No such file or directory"),
        ("{", "the file is not a hardware profile: Expecting property name"),
        ("[]", "the file is not a hardware profile: "),
        ('{"key": "cpu"}', "the file is not a hardware profile: "),
        (json.dumps({**PROFILE, "speed": 1}), "the file is not a hardware profile: "),
        (json.dumps({**PROFILE, "tflops": 1}), "the file is not a hardware profile: "),
        (json.dumps({**PROFILE, "launch_s": "x"}), "the file is not a hardware profile: launch_s"),
        (
            json.dumps({**PROFILE, "by_ranks": {"x": {}}}),
            "the file is not a hardware profile: by_r",
        ),
        (
            json.dumps({**PROFILE, "by_ranks": {"2": {"launch_s": "x"}}}),
            "the file is not a hardware profile: launch_s",
        ),
        (json.dumps({**PROFILE, "key": 5}), "the file is not a hardware profile: key is 5"),
        (json.dumps({**PROFILE, "sources": {}}), "the file is not a hardware profile: sources"),
    ],
)
def test_what_is_no_profile(tmp_path: Path, content: str | None, what: str) -> None:
    path = tmp_path / "own.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(CallError) as caught:
        hardware.find(str(path))
    assert caught.value.what.startswith(what)
    assert caught.value.where == str(path)
    assert caught.value.remedy == "measure this machine: ds-llama plan --calibrate"


def test_one_of_several_ranks_on_a_processor() -> None:
    """Measured for two; three share what two had; a GPU is nobody else's."""
    two = {"tflops": {"float32": 0.09}, "memory_bytes_per_s": 8e9, "launch_s": 5e-6}
    cpu = hardware.Hardware(
        "cpu", "", {"float32": 0.1}, {}, memory_bytes_per_s=1e10, launch_s=4e-6,
        devices_per_node=2, shared=True, by_ranks={"2": two},
    )  # fmt: skip
    assert cpu.one_of(1) == cpu
    assert cpu.one_of(2).tflops == {"float32": 0.09}
    three = cpu.one_of(3)
    assert three.tflops["float32"] == pytest.approx(0.06)
    assert three.memory_bytes_per_s == pytest.approx(8e9 * 2 / 3)
    assert three.launch_s == pytest.approx(7.5e-6)
    alone = hardware.find("h100")
    assert alone.one_of(8) is alone


def test_a_device_with_figures_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "own.json"
    path.write_text('{"base": "h100", "nvme_read_bytes_per_s": 2.5e10, "tflops": {"float32": 60}}')
    found = hardware.find(str(path))
    base = hardware.find("h100")
    assert found.nvme_read_bytes_per_s == 2.5e10
    assert found.tflops == {**base.tflops, "float32": 60}
    assert found.sources["nvme_read_bytes_per_s"] == f"given in {path}"
    assert found.link_bytes_per_s == base.link_bytes_per_s
    assert not found.measured


ASKED = (
    "v100-sxm",
    "v100-pcie",
    "a100-sxm",
    "a100-pcie",
    "h100-sxm",
    "h100-pcie",
    "h200-sxm",
    "b200",
)


def test_the_usual_devices_say_where_each_figure_can_be_read() -> None:
    rows = [row for row in hardware.table() if row.key.startswith(ASKED)]
    assert len(rows) == 12
    for row in rows:
        for name, source in row.sources.items():
            if name != "memory_bytes":
                assert "https://" in source, (row.key, name)
        assert row.nvme_read_bytes_per_s is None  # no vendor says what a node's disks do together

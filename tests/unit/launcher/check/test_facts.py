"""What is made of nvidia-smi's words and of NCCL's wheel.

None of them was seen on a device: words and forms are those of the program's manual and of public
threads, put into the four columns that are asked for here.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from ds_llama.launcher.check.answers import Device
from ds_llama.launcher.check.probe import facts

MIB = 2**20


H100 = "NVIDIA H100 80GB HBM3"


@pytest.mark.parametrize(
    ("said", "code", "found"),
    [
        (
            f"{H100}, 535.129.03, 81559, 4\n{H100}, 535.129.03, 81559, 0",
            0,
            [(H100, "535.129.03", 81559, 4), (H100, "535.129.03", 81559, 0)],
        ),
        # A MIG device in an unprivileged container (StableSwarmUI, issue 388).
        (
            "NVIDIA A100-SXM4-80GB, 535.161.08, [Insufficient Permissions], "
            "[Insufficient Permissions]",
            0,
            [("NVIDIA A100-SXM4-80GB", "535.161.08", None, None)],
        ),
        # What does not apply: [Not Supported], and [N/A] since 2020 (i3pystatus, pull 776).
        ("Tesla P40, 410.72, [Not Supported], 0", 0, [("Tesla P40", "410.72", None, None)]),
        ("NVIDIA GB10, 580.95.05, [N/A], [N/A]", 0, [("NVIDIA GB10", "580.95.05", None, None)]),
        ("No devices were found", 0, []),
        ("No devices were found", 6, []),
        ("Failed to initialize NVML: Driver/library version mismatch", 18, []),
        ("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.", 9, []),
    ],
)
def test_devices(
    said: str,
    code: int,
    found: list[tuple[str, str, int | None, int | None]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    program = tmp_path / "nvidia-smi"
    (tmp_path / "said").write_text(said + "\n")
    program.write_text(f"#!/bin/sh\ncat {tmp_path}/said\nexit {code}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    devices = [Device.model_validate(device) for device in facts.devices()]
    expected = [
        Device(
            name=name,
            driver=driver,
            total_bytes=None if total is None or used is None else total * MIB,
            used_bytes=None if total is None or used is None else used * MIB,
        )
        for name, driver, total, used in found
    ]
    if expected or not list(Path("/dev").glob("nvidia[0-9]*")):
        assert devices == expected


def test_versions_by_the_folders_that_wheels_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names of folders that the wheels of torch for CUDA 12 and 13 bring along."""
    for name, version in (("cu12", "2.27.5"), ("cu13", "2.28.9")):
        site = tmp_path / name
        (site / f"nvidia_nccl_{name}-{version}.dist-info").mkdir(parents=True)
        (site / f"nvidia_nvshmem_{name}-3.4.5.dist-info").mkdir()
        monkeypatch.setattr("sys.path", [str(site)])
        assert facts.versions()["nccl"] == version

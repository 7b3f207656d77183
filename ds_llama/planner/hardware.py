"""Peak matmul throughput of devices, from their vendors' data sheets.

Dense figures only: where a data sheet prints the figure "with sparsity", half of it stands here.
A name that no row matches gives None. A peak that is guessed makes every MFU a fiction: a device
that is taken for another reads several times too high or too low, and nobody sees it.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

from ds_llama.errors import CallError

_TERA = 1e12
_DTYPES = {
    "bfloat16": "bfloat16",
    "bf16": "bfloat16",
    "float16": "float16",
    "fp16": "float16",
    "float32": "float32",
    "fp32": "float32",
    "tf32": "tf32",
}


@dataclass(frozen=True)
class Hardware:
    """One device as one process sees it; an AMD card of two dies is two of these.

    `pattern` is a regular expression over the whole lower-cased name that
    `torch.cuda.get_device_name` reports. The peaks are dense TFLOP/s with fp32 accumulation;
    None where the device cannot do it, or the vendor does not say.
    """

    key: str
    pattern: str
    source: str
    bf16_tflops: float | None
    fp16_tflops: float | None
    tf32_tflops: float | None
    fp32_tflops: float | None

    def peak_flops(self, dtype: str, *, tf32: bool = False) -> float | None:
        """Peak FLOP/s of matmuls in `dtype` ("bfloat16", "float16", "float32" or "tf32").

        `tf32` says that fp32 matmuls may run on TF32 tensor cores
        (`torch.backends.cuda.matmul.allow_tf32`); torch's default is that they may not.
        """
        name = _DTYPES.get(dtype.removeprefix("torch."))
        if name == "float32" and tf32 and self.tf32_tflops is not None:
            name = "tf32"
        tflops = {
            "bfloat16": self.bf16_tflops,
            "float16": self.fp16_tflops,
            "tf32": self.tf32_tflops,
            "float32": self.fp32_tflops,
        }.get(name or "")
        return None if tflops is None else tflops * _TERA


_HOPPER_SXM = (989.5, 989.5, 494.5, 67.0)
_HOPPER_NVL = (835.5, 835.5, 417.5, 60.0)
_AMPERE_100 = (312.0, 312.0, 156.0, 19.5)

# key, pattern, source, (bf16, fp16, tf32, fp32)
_ROWS: tuple[
    tuple[str, str, str, tuple[float | None, float | None, float | None, float | None]], ...
] = (
    (
        "v100-sxm",
        r"(nvidia )?tesla v100-sxm[23]-(16|32)gb",
        "NVIDIA V100 data sheet (2020), column V100 SXM2",
        (None, 125.0, None, 15.7),
    ),
    (
        "v100-pcie",
        r"(nvidia )?tesla v100-pcie-(16|32)gb",
        "NVIDIA V100 data sheet (2020), column V100 PCIe",
        (None, 112.0, None, 14.0),
    ),
    (
        "v100s-pcie",
        r"(nvidia )?tesla v100s-pcie-32gb",
        "NVIDIA V100 data sheet (2020), column V100S PCIe",
        (None, 130.0, None, 16.4),
    ),
    ("t4", r"(nvidia )?(tesla )?t4", "NVIDIA T4 data sheet (2019)", (None, 65.0, None, 8.1)),
    (
        "a100-sxm",
        r"(nvidia )?a100-sxm4?-(40|80)gb",
        "NVIDIA A100 data sheet (2021), SXM",
        _AMPERE_100,
    ),
    (
        "a100-pcie",
        r"(nvidia )?a100(-pcie-(40|80)gb| 80gb pcie)",
        "NVIDIA A100 data sheet (2021), PCIe",
        _AMPERE_100,
    ),
    ("a30", r"(nvidia )?a30", "NVIDIA A30 data sheet (2021)", (165.0, 165.0, 82.0, 10.3)),
    ("a40", r"(nvidia )?a40", "NVIDIA A40 data sheet (2021)", (149.7, 149.7, 74.8, 37.4)),
    ("a10", r"(nvidia )?a10", "NVIDIA A10 data sheet (2021)", (125.0, 125.0, 62.5, 31.2)),
    (
        "rtx-a6000",
        r"(nvidia )?rtx a6000",
        "NVIDIA GA102 white paper, table of RTX A6000",
        (154.8, 154.8, 77.4, 38.7),
    ),
    (
        "rtx-3090",
        r"(nvidia )?geforce rtx 3090",
        "NVIDIA GA102 white paper, FP16 with FP32 accumulate",
        (71.2, 71.2, 35.6, 35.6),
    ),
    ("l4", r"nvidia l4", "NVIDIA L4 data sheet (2023)", (121.0, 121.0, 60.0, 30.3)),
    ("l40", r"nvidia l40", "NVIDIA L40 data sheet (2023)", (181.05, 181.05, 90.5, 90.5)),
    ("l40s", r"nvidia l40s", "NVIDIA L40S data sheet (2023)", (362.05, 362.05, 183.0, 91.6)),
    (
        "rtx-6000-ada",
        r"nvidia rtx 6000 ada generation",
        "NVIDIA Ada professional GPU white paper",
        (364.2, 364.2, 182.1, 91.1),
    ),
    (
        "rtx-4090",
        r"nvidia geforce rtx 4090",
        "NVIDIA Ada GPU white paper, FP16 with FP32 accumulate",
        (165.2, 165.2, 82.6, 82.6),
    ),
    (
        "rtx-5090",
        r"nvidia geforce rtx 5090",
        "NVIDIA RTX Blackwell white paper, FP16 with FP32 accumulate",
        (209.5, 209.5, 104.8, 104.8),
    ),
    (
        "h100-sxm",
        r"nvidia h100 (80gb hbm3|sxm5?)",
        "NVIDIA H100 data sheet (2023), H100 SXM",
        _HOPPER_SXM,
    ),
    (
        "h100-pcie",
        r"nvidia h100 pcie",
        "NVIDIA H100 data sheet (2022), H100 PCIe",
        (756.5, 756.5, 378.0, 51.0),
    ),
    ("h100-nvl", r"nvidia h100 nvl", "NVIDIA H100 data sheet (2024), H100 NVL", _HOPPER_NVL),
    ("h200-sxm", r"nvidia h200", "NVIDIA H200 data sheet (2024), H200 SXM", _HOPPER_SXM),
    ("h200-nvl", r"nvidia h200 nvl", "NVIDIA H200 data sheet (2024), H200 NVL", _HOPPER_NVL),
    (
        "gh200",
        r"nvidia gh200( \d+gb)?",
        "NVIDIA GH200 Grace Hopper data sheet (2023)",
        _HOPPER_SXM,
    ),
    (
        "b200",
        r"nvidia b200",
        "NVIDIA HGX B200 specification, an eighth of the board's figure",
        (2250.0, 2250.0, 1125.0, 75.0),
    ),
    (
        "gb200",
        r"nvidia gb200",
        "NVIDIA GB200 Superchip specification, half of the superchip's figure",
        (2500.0, 2500.0, 1250.0, 80.0),
    ),
    (
        "b300",
        r"nvidia b300( sxm6( ac)?)?",
        "NVIDIA HGX B300 specification, an eighth of the board's figure",
        (2250.0, 2250.0, 1125.0, 75.0),
    ),
    (
        "mi250x",
        r"amd instinct mi250x",
        "AMD Instinct MI250X data sheet, half of the card: one die is one device",
        (191.5, 191.5, None, 47.9),
    ),
    (
        "mi300x",
        r"amd instinct mi300x( oam)?",
        "AMD Instinct MI300X data sheet (2023)",
        (1307.4, 1307.4, 653.7, 163.4),
    ),
    (
        "mi325x",
        r"amd instinct mi325x( oam)?",
        "AMD Instinct MI325X data sheet (2024)",
        (1307.4, 1307.4, 653.7, 163.4),
    ),
)

TABLE: tuple[Hardware, ...] = tuple(
    Hardware(key, pattern, source, *peaks) for key, pattern, source, peaks in _ROWS
)

# What people call a device when they mean its commonest form.
_SHORT = {
    "v100": "v100-sxm",
    "a100": "a100-sxm",
    "h100": "h100-sxm",
    "h200": "h200-sxm",
}


def find(device_name: str) -> Hardware | None:
    """The row of a name as `torch.cuda.get_device_name()` reports it, or None.

    None for an unknown device, for a variant whose figures are not known (a memory size or a
    suffix that no data sheet has), and for a MIG slice, which is a fraction of its device.
    """
    name = " ".join(device_name.lower().split())
    for row in TABLE:
        if re.fullmatch(row.pattern, name):
            return row
    return None


def by_key(key: str) -> Hardware:
    """The row of a short name that a person types: "h100", "a100-pcie". Raises CallError."""
    name = key.strip().lower()
    name = _SHORT.get(name, name)
    keys = [row.key for row in TABLE]
    if name in keys:
        return TABLE[keys.index(name)]
    near = difflib.get_close_matches(name, [*keys, *_SHORT], n=1)
    hint = f'did you mean "{near[0]}"? ' if near else ""
    raise CallError(
        f'unknown hardware "{key}"',
        where="--hardware",
        remedy=f"{hint}known: {', '.join(sorted([*keys, *_SHORT]))}",
    )


def peak_flops(device_name: str | None, dtype: str, *, tf32: bool = False) -> float | None:
    """Peak FLOP/s of the named device in `dtype`, None where it is not known."""
    row = find(device_name) if device_name else None
    return None if row is None else row.peak_flops(dtype, tf32=tf32)

"""What the processor at hand can do."""

from __future__ import annotations

from pathlib import Path

import torch

CPU_INFO = Path("/proc/cpuinfo")
BFLOAT16 = {"avx512_bf16", "amx_bf16", "bf16"}
"""What Linux calls bfloat16 products, on x86 and on ARM."""


def cpu_flags() -> set[str]:
    """The features of the processor, as Linux names them; none elsewhere."""
    try:
        lines = CPU_INFO.read_text().splitlines()
    except OSError:
        return set()
    named = (line for line in lines if line.startswith(("flags", "Features")))
    return {flag for line in named for flag in line.partition(":")[2].split()}


def has_bfloat16(device: torch.device) -> bool:
    """Whether a device multiplies in bfloat16 itself."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return not BFLOAT16.isdisjoint(cpu_flags())

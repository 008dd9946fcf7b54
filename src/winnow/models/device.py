"""Where a model is computed, in which precision, and what the process keeps for it."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import sys
from pathlib import Path

import torch

from winnow.errors import ModelError
from winnow.system import launch

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # <malloc.h>
# bytes of a block that is kept: as a rule, and where memory is short (docs/log.md)
MUCH, LITTLE = (
    2**25,
    2**20,
)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}


def pick_device(name: str) -> torch.device:
    """`auto` is the first GPU, else the CPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ModelError(
            f"device {name!r} cannot be used: {error}", remedy="--device cpu, or auto"
        ) from error
    if device.type == "cpu":
        # saturated margins fill the backward pass with subnormal floats: 8x slower
        torch.set_flush_denormal(True)
    return device


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 on a GPU, else float32."""
    return (
        DTYPES["bfloat16" if device.type == "cuda" else "float32"]
        if name == "auto"
        else DTYPES[name]
    )


def keep_memory(largest: int = MUCH) -> None:
    """Freed tensors of up to `largest` bytes stay with this process: a page the system hands out
    anew is zeroed first, a third of a training step in all.

    glibc gives blocks back at once unless it is told not to (`mallopt`); other C libraries lack the
    call. Larger blocks still go back: they would leave holes that nothing fits into.
    """
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, largest)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def available(device: torch.device) -> int:
    """Bytes this process may still take: of the GPU, or its share of the machine within its control
    group, where the job has several on it.
    """
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    found = (
        re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
        if Path("/proc/meminfo").exists()
        else None
    )
    free = (
        int(found[1]) * 1024 if found else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    )
    group = Path("/sys/fs/cgroup")
    limit, used = group / "memory.max", group / "memory.current"
    if limit.exists() and used.exists() and (text := limit.read_text().strip()) != "max":
        free = min(free, int(text) - int(used.read_text()))
    return free // launch.here()

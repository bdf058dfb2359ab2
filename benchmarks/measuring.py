"""What the benchmarks share: on what was measured, and how a result is kept."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    cpu = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    model = next(
        (line.partition(":")[2].strip() for line in cpu.splitlines() if line.startswith("model name")), ""
    )
    flags = next((line.split() for line in cpu.splitlines() if line.startswith("flags")), [])
    accelerator = {"accelerator": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    return {
        "processor": model or platform.processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "fast_bf16": sorted({"avx512_bf16", "amx_bf16"} & set(flags)),
        "python": platform.python_version(),
        **accelerator,
        "versions": {name: version(name) for name in ("ptuning", "torch", "transformers", "accelerate")},
    }


def processor(machine: Mapping[str, Any]) -> str:
    """The CPU of a :func:`machine`, and whether it has AMX, which decides how fast bf16 is there."""
    amx = " with AMX" if "amx_bf16" in machine.get("fast_bf16", ()) else ""
    return f"{machine['processor']}{amx}, {machine['cores']} cores"


def write(file: Path, found: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")

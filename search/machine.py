"""What a machine is called, where its speed matters."""

import os
import platform
from pathlib import Path


def machine_name(device: str) -> str:
    """Of the GPU that trains, or of the CPU with the number of cores that this process may use."""
    if device == "cuda":
        import torch

        return str(torch.cuda.get_device_name())
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{cpu_name()}, {cores} cores"


def cpu_name() -> str:
    """Of the CPU as its maker calls it."""
    facts = Path("/proc/cpuinfo")
    models = (
        line.partition(":")[2].strip()
        for line in (facts.read_text().splitlines() if facts.exists() else ())
        if line.startswith("model name")
    )
    return next(models, platform.processor())

"""CPU and memory of the driver's machine, under the names that MLflow gives them."""

from __future__ import annotations

import psutil


def system_metrics() -> dict[str, float]:
    """One sample. CPU in percent since the last sample in this process, memory in megabytes and percent."""
    memory = psutil.virtual_memory()
    return {
        "system/cpu_utilization_percentage": float(psutil.cpu_percent()),
        "system/system_memory_usage_megabytes": (memory.total - memory.available) / 1e6,
        "system/system_memory_usage_percentage": float(memory.percent),
    }

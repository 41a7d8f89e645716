"""What the machine is busy with while a stage runs, by MLflow's own monitors."""

import logging
from collections.abc import Iterator
from typing import final

import psutil
from mlflow.system_metrics.metrics.base_metrics_monitor import BaseMetricsMonitor
from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

from pipeline.tracking.journal import SYSTEM

__all__ = ["SystemMetrics"]


@final
class SystemMetrics:
    """Load of processors, memory, disk, network and, with ``nvidia-ml-py``, NVIDIA GPUs.

    MLflow's thread that would send these at once is not used: a dead server would lose them.
    """

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._monitors = list(_monitors())
        psutil.cpu_percent()  # its load is the mean since the call before

    def sample(self) -> dict[str, float]:
        """Load since the last sample, by the names under which MLflow's page looks for it."""
        found = {"process_memory_megabytes": self._process.memory_info().rss / 1e6}
        for monitor in self._monitors:
            monitor.collect_metrics()
            found |= monitor.aggregate_metrics()
            monitor.clear_metrics()
        return {f"{SYSTEM}{name}": value for name, value in found.items()}


def _monitors() -> Iterator[BaseMetricsMonitor]:
    yield from (CPUMonitor(), DiskMonitor(), NetworkMonitor())
    logging.getLogger("mlflow.system_metrics").setLevel(logging.ERROR)
    try:
        yield GPUMonitor()
    except (ImportError, RuntimeError):  # no nvidia-ml-py, or no GPU
        return

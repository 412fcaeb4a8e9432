"""What a server's processes use: processor time, memory, and the energy of the machine."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

RAPL = Path("/sys/class/powercap")
"""Where Linux counts the energy of Intel's and AMD's processors."""

NO_ENERGY = (
    f"The energy is not readable: {RAPL} has no counter that this user may read, and there is no "
    "NVIDIA device that counts it."
)


def process_tree(pid: int) -> list[int]:
    """A process and those that descend from it."""
    parents = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        parents[int(status.parent.name)] = int(fields[1])
    tree = [pid]
    for known in tree:
        tree += [child for child, parent in parents.items() if parent == known]
    return tree


def processor_s(pid: int) -> float:
    """Seconds of processor time that a process has used so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def machine_s() -> float:
    """Seconds of processor time that all processes of the machine have used so far."""
    user, nice, system, _idle, _waiting, *rest = map(
        int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    )
    interrupts, soft_interrupts = rest[:2]
    used = user + nice + system + interrupts + soft_interrupts
    return used / os.sysconf("SC_CLK_TCK")


def peak_mib(pid: int) -> int:
    """The most memory of a process so far; 0 if the system does not say."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) // 1024
    return 0


def tree_processor_s(pid: int) -> float:
    """Seconds of processor time that a process and those that descend from it have used so far."""
    return sum(map(processor_s, process_tree(pid)))


def tree_peak_mib(pid: int) -> int:
    """The most memory of a process and of those that descend from it, added up."""
    return sum(map(peak_mib, process_tree(pid)))


def joules_between(before_j: float | None, after_j: float | None) -> float | None:
    """Joules used between two readings of `energy_j`.

    None if they are not counted, or the counter began anew in between.
    """
    if before_j is None or after_j is None or after_j < before_j:
        return None
    return after_j - before_j


def energy_j() -> float | None:
    """Joules that processors and NVIDIA devices have used so far; None if neither is counted."""
    counted = [found for found in (_processors_j(), _devices_j()) if found is not None]
    return sum(counted) if counted else None


def _processors_j() -> float | None:
    """Joules of all processors, by RAPL."""
    counters = [
        zone / "energy_uj" for zone in RAPL.glob("intel-rapl:*") if zone.name.count(":") == 1
    ]
    try:
        return sum(int(counter.read_text()) for counter in counters) / 1e6 if counters else None
    except OSError:
        return None


def _devices_j() -> float | None:
    """Joules of all NVIDIA devices, by NVML's counter, which newer devices have."""
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return None
    count, total = ctypes.c_uint(), 0.0
    if nvml.nvmlInit_v2() != 0:
        return None
    try:
        if nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)) != 0 or not count.value:
            return None
        for number in range(count.value):
            device, used_mj = ctypes.c_void_p(), ctypes.c_ulonglong()
            if (
                nvml.nvmlDeviceGetHandleByIndex_v2(number, ctypes.byref(device)) != 0
                or nvml.nvmlDeviceGetTotalEnergyConsumption(device, ctypes.byref(used_mj)) != 0
            ):
                return None
            total += used_mj.value / 1e3
    finally:
        nvml.nvmlShutdown()
    return total

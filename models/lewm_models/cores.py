"""How many processor cores this process may use, and which of its threads go first."""

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

OWN_GROUPS = Path("/proc/self/cgroup")
"""The control groups of this process, a line each: number, controllers and path."""
GROUP_FOLDERS = Path("/sys/fs/cgroup")


def usable_cores() -> int:
    """The cores of the process's affinity, or as many as the quotas of its control groups allow.

    A container sees all cores of its machine, whatever its quota is. With more threads than the
    quota has whole cores, the kernel stops all of them for a part of each period.
    """
    quotas = (int(quota) for quota in _quotas())
    return max(1, min([len(os.sched_getaffinity(0)), *quotas]))


def _quotas() -> Iterator[float]:
    """The quotas, in cores, of this process's control groups and those above them."""
    try:
        lines = OWN_GROUPS.read_text().splitlines()
    except OSError:
        return  # no Linux, or no control groups
    for line in lines:
        _, controllers, name = line.split(":", maxsplit=2)
        group = Path(name.lstrip("/"))
        # In a container the folders of the groups above its own may not exist.
        for path in (group, *group.parents):
            if controllers == "":
                quota = _quota(GROUP_FOLDERS / path / "cpu.max")
            elif "cpu" in controllers.split(","):
                folder = GROUP_FOLDERS / "cpu" / path
                quota = _quota(folder / "cpu.cfs_quota_us", folder / "cpu.cfs_period_us")
            else:
                continue
            if quota is not None:
                yield quota


def _quota(*files: Path) -> float | None:
    """The quota in cores of files that hold microseconds per period, and the period."""
    try:
        quota, period = (word for file in files for word in file.read_text().split())
    except (OSError, ValueError):
        return None
    unlimited = quota in ("max", "-1")
    return None if unlimited else int(quota) / int(period)


def lower_thread_priority(niceness: int) -> None:
    """Let the other threads of the process go first, from now on and for good.

    On Linux, niceness belongs to a thread, and the threads that it starts inherit it.
    """
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), niceness)

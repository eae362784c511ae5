"""How much memory a device has free: what the system says, what the process's control groups and its own limits
(`ulimit -v`) leave of it, and what the process's own allocator holds ready.

Read at calls that are predicted to need much; where a system does not say, nothing is known, and nothing is refused.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import torch

UNLIMITED_BYTES = 2**60
"""What Linux writes for "no limit" is beyond it."""
GROUPS = (("memory.max", "memory.current", "inactive_file"),
          ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"))
"""Of control groups of both versions: the files of the limit and of what is used, and in memory.stat the pages of files
that can be dropped."""


def free_bytes(device: torch.device) -> int | None:
    """Bytes that may still be allocated on a device; None where that cannot be known."""
    if device.type == "cuda":
        return _free_on_cuda(device)
    if device.type != "cpu":
        return None
    parts = (_free_in_system(Path("/proc/meminfo")), _free_of_addresses(), *map(_free_in_group, _limited_groups()))
    known = [free for free in parts if free is not None]
    return min(known) + held_ready() if known else None


class _Arenas(ctypes.Structure):
    """glibc's struct mallinfo2."""

    _fields_ = tuple((name, ctypes.c_size_t) for name in (
        "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"))


@cache
def _arenas() -> Callable[[], _Arenas] | None:
    """glibc's own count of its arenas; None on systems without."""
    try:
        count = ctypes.CDLL(None).mallinfo2
    except (OSError, AttributeError, TypeError):
        return None
    count.restype = _Arenas
    return count


def held_ready() -> int:
    """Bytes that were freed and not given back to the system: a repeated call takes them again."""
    count = _arenas()
    return 0 if count is None else int(count().fordblks)


def _free_on_cuda(device: torch.device) -> int | None:
    """What the driver has free, and what torch holds in reserve."""
    if not torch.cuda.is_available():
        return None
    free, _ = torch.cuda.mem_get_info(device)
    return int(free) + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def _free_in_system(path: Path) -> int | None:
    """What Linux thinks it can give without swapping; elsewhere the pages that are free, if the system says so."""
    try:
        for line in path.read_text().splitlines():
            name, _, rest = line.partition(":")
            if name == "MemAvailable":
                return int(rest.split()[0]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, AttributeError):
        return None


def _free_of_addresses() -> int | None:
    """What the process's own limit of addresses leaves; None where it has none."""
    try:
        import resource  # not on Windows

        most, _ = resource.getrlimit(resource.RLIMIT_AS)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except (ImportError, OSError, ValueError, AttributeError):
        return None
    return None if most == resource.RLIM_INFINITY or most > UNLIMITED_BYTES else max(0, most - used)


@cache
def _limited_groups() -> tuple[Path, ...]:
    """The folders of this process's control groups that have a limit, which hardly changes while it runs."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return ()
    return tuple(folder for folder in _group_folders(lines, Path("/sys/fs/cgroup"))
                 if _free_in_group(folder) is not None)


def _group_folders(lines: list[str], root: Path) -> Iterator[Path]:
    """Those of a process's groups, and of the groups around them, that may limit its memory."""
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        top = root / "memory" if controllers else root
        inner = top / path.lstrip("/")
        yield from (folder for folder in (inner, *inner.parents) if folder == top or top in folder.parents)


def _free_in_group(folder: Path) -> int | None:
    """What a control group's limit leaves; None where it has none."""
    for limit, used, droppable in GROUPS:
        try:
            most = (folder / limit).read_text().strip()
            if most == "max" or int(most) > UNLIMITED_BYTES:
                continue
            known = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            return max(0, int(most) - int((folder / used).read_text()) + int(known.get(droppable, 0)))
        except (OSError, ValueError):
            continue
    return None

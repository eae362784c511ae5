"""Peak memory of one call, each contestant in a fresh process.

After a warm-up on the same batch (20 seconds of it, no more) memory is handed back, the kernel's peak counter is reset,
and the batch runs once more: the growth is what a call needs, its results included, without what kernels keep for good.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from . import devices
from .networks import problem
from .peers import BACKENDS, Contestant, contestants, gradient, our_name
from .timing import TooSlowError, time_limit

MEBI = 2**20
WARM_UP = 20.0
"""Seconds of a warm-up: by then every kernel has run."""
RETURNING = {"MALLOC_MMAP_THRESHOLD_": str(2**16), "MALLOC_MMAP_MAX_": str(2**20), "MALLOC_TRIM_THRESHOLD_": str(2**16)}
"""glibc then gives a freed tensor's memory back at once, so that what is measured is held, not kept for later."""
LATEST = 3600.0
"""Seconds for a backend that compiles at its first call."""
LATE = {our_name(backend) for backend in BACKENDS if backend != "python"}
"""Contestants who compile at their first call."""


@dataclass(frozen=True)
class Peak:
    """Bytes; or None, and why."""

    bytes: int | None
    failure: str = ""


def status(field: str) -> int:
    """A line of /proc/self/status, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(field)


def growth(call: Callable[[], Any]) -> int:
    """Bytes by which this process (on a GPU: what torch has there) grows at most during a call made before."""
    gc.collect()
    if devices.on_cuda():
        return _growth_on_cuda(call)
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    call()
    return status("VmHWM") - before


def _growth_on_cuda(call: Callable[[], Any]) -> int:
    devices.wait()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    devices.wait()
    return torch.cuda.max_memory_allocated() - before


def peak(contestant: Contestant, network: str, size: int, quantities: Sequence[str], late: bool) -> int | None:
    """Bytes by which this process grows at most during one call."""
    run = contestant(problem(network, size), quantities, 1)
    if run is None:
        return None
    with contextlib.suppress(TooSlowError), time_limit(LATEST if late else WARM_UP):
        run.call()
    if not late:  # another model, for some leave their results on the parameters
        run = contestant(problem(network, size), quantities, 1)
        assert run is not None
    return growth(run.call)


def in_subprocess(name: str, network: str, size: int, quantities: Sequence[str], threads: int,
                  limit: float, device: str = "cpu") -> Peak:
    """`peak` in a fresh process, which may take so many seconds, its imports and compilation included."""
    return printed("benchmarks.memory", [name, network, str(size), ",".join(quantities), str(threads),
                                           device], limit)


def printed(module: str, arguments: Sequence[str], limit: float) -> Peak:
    """What `python -m module arguments` prints in its last line, within so many seconds."""
    try:
        done = subprocess.run([sys.executable, "-W", "ignore", "-m", module, *arguments], capture_output=True,
                              timeout=limit, check=True, env={**os.environ, **RETURNING})
    except subprocess.TimeoutExpired:
        return Peak(None, f">{limit:g} s")
    except subprocess.CalledProcessError as error:
        lines = error.stderr.decode(errors="replace").split("\n")
        said = next((line for line in reversed(lines) if line.strip()), "")
        return Peak(None, f"exit code {error.returncode}: {said[:80]}")
    found: int | None = json.loads(done.stdout.splitlines()[-1])
    return Peak(found, "" if found is not None else "cannot")


def main(name: str, network: str, size: str, quantities: str, threads: str, device: str) -> None:
    torch.set_num_threads(int(threads))
    devices.choose(device)
    everyone: dict[str, Contestant] = {"gradient": gradient, **contestants(BACKENDS, True)}
    asked = [] if name == "gradient" else quantities.split(",")
    print(json.dumps(peak(everyone[name], network, int(size), asked, name in LATE)))


if __name__ == "__main__":
    main(*sys.argv[1:])

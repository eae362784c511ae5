"""Peak memory of one call, each contestant in a fresh process.

After a warm-up on two samples, memory is handed back, the kernel's peak counter is reset, and the full batch runs
once: the growth is what the call needs, its results included.
"""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from .networks import problem
from .peers import Contestant, contestants, gradient


def status(field: str) -> int:
    """A line of /proc/self/status, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(field)


def peak(contestant: Contestant, network: str, size: int, quantities: Sequence[str]) -> int | None:
    """Bytes by which this process grows at most during one call."""
    small = contestant(problem(network, 2), quantities, 1)
    if small is None:
        return None
    small.call()
    run = contestant(problem(network, size), quantities, 1)
    assert run is not None
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    run.call()
    return status("VmHWM") - before


def in_subprocess(name: str, network: str, size: int, quantities: Sequence[str], threads: int,
                  limit: float) -> int | None:
    """`peak` in a fresh process; None where it fails."""
    arguments = [name, network, str(size), ",".join(quantities), str(threads)]
    try:
        done = subprocess.run([sys.executable, "-W", "ignore", "-m", "benchmarks.memory", *arguments],
                              capture_output=True, timeout=limit, check=True)
    except (subprocess.TimeoutExpired, subprocess.CalledProcessError):
        return None
    found: int | None = json.loads(done.stdout.splitlines()[-1])
    return found


def main(name: str, network: str, size: str, quantities: str, threads: str) -> None:
    torch.set_num_threads(int(threads))
    everyone: dict[str, Contestant] = {"gradient": gradient,
                                       **contestants(("python", "torchscript", "inductor"), True)}
    asked = [] if name == "gradient" else quantities.split(",")
    print(json.dumps(peak(everyone[name], network, int(size), asked)))


if __name__ == "__main__":
    main(*sys.argv[1:])

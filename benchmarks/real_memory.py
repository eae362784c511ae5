"""`python -m benchmarks.real_memory CELL CONTESTANT QUANTITIES THREADS DEVICE`.

Bytes of one call, in a process of its own.
"""

from __future__ import annotations

import json
import sys

import torch

from . import devices
from .real import peak


def main() -> None:
    """Prints them, or null for a contestant that cannot."""
    cell, name, quantities, threads, device = sys.argv[1:]
    torch.set_num_threads(int(threads))
    devices.choose(device)
    print(json.dumps(peak(cell, name, quantities)))


if __name__ == "__main__":
    main()

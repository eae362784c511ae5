"""`python -m benchmarks.second_order_memory NETWORK QUANTITY BATCH THREADS`: bytes of one call."""

from __future__ import annotations

import json
import sys

import torch

from .second_order import peak


def main() -> None:
    """Prints them, of this process, which is a fresh one."""
    name, asked, batch, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    print(json.dumps(peak(name, asked, int(batch))))


if __name__ == "__main__":
    main()

"""`python -m benchmarks.lines 3c3d 64 diag_ggn`: where a generated program spends its time, line by line."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path
from types import FrameType
from typing import Any

import click

import hbpcompiler as hbp

from .networks import NETWORKS, problem
from .timing import Neighbours, prepare


class LineClock:
    """A trace function that adds up the time between one line of `file` and the next."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.seconds: defaultdict[int, float] = defaultdict(float)
        self.counts: Counter[int] = Counter()
        self.line, self.start = 0, 0.0

    def __call__(self, frame: FrameType, event: str, argument: Any) -> Any:
        code = frame.f_code  # helpers count for the lines that call them
        return self.local if code.co_filename == self.file and code.co_name == "forward" else None

    def local(self, frame: FrameType, event: str, argument: Any) -> Any:
        now = time.perf_counter()
        if self.line:
            self.seconds[self.line] += now - self.start
            self.counts[self.line] += 1
        self.line = frame.f_lineno if event == "line" else 0
        self.start = time.perf_counter()
        return self.local


@click.command()
@click.argument("network", type=click.Choice(list(NETWORKS)))
@click.argument("batch", type=int)
@click.argument("quantities")
@click.option("--top", default=25, show_default=True, help="How many lines to print.")
@click.option("--rounds", default=5, show_default=True, help="Calls; a line's fastest counts.")
@click.option("--threads", default=os.cpu_count() or 1, show_default=True, help="Threads of torch.")
def main(network: str, batch: int, quantities: str, top: int, rounds: int, threads: int) -> None:
    """Print the slowest lines of the program for these quantities, with their share of the call."""
    prepare(threads)
    given = problem(network, batch)
    compiled = hbp.compile(given.model, given.loss, quantities=quantities.split("+"),
                           example_inputs=(given.inputs, given.target))
    compiled(given.inputs, given.target)
    file = str(compiled.path)
    text = Path(file).read_text().splitlines()
    best: dict[int, float] = {}
    neighbours = Neighbours()
    for _ in range(rounds):
        neighbours.wait()
        clock = LineClock(file)
        sys.settrace(clock)
        try:
            compiled(given.inputs, given.target)
        finally:
            sys.settrace(None)
        best = {line: min(seconds, best.get(line, seconds)) for line, seconds in clock.seconds.items()}
    total = sum(best.values())
    print(f"{file}: {1e3 * total:.1f} ms in {len(best)} lines")
    for line, seconds in sorted(best.items(), key=lambda item: -item[1])[:top]:
        times = f"{clock.counts[line]}x" if clock.counts[line] > 1 else ""
        code = text[line - 1].strip()[:150]
        print(f"{1e3 * seconds:9.2f} ms {100 * seconds / total:5.1f}% {times:>6} {line:5d}: {code}")


if __name__ == "__main__":
    main()

"""The stages' names in their order, the time that each took, and what happens if one breaks its contract."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from hbpcompiler.errors import InternalError

STAGES = ("export", "trace", "match", "plan", "derive", "optimise", "emit", "load")
"""export is torch's part of trace."""

FIRST_RUN = "first run"
PROVE = "prove"
"""What follows the first run, see `prove`."""


@dataclass
class Seconds:
    """How long each stage took, all its runs together (a memory budget drafts several plans), and the first call."""

    of: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Adds the time of what runs inside to a stage's."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.of[name] = self.of.get(name, 0.0) + time.perf_counter() - start

    @contextmanager
    def first(self, name: str) -> Iterator[None]:
        """The same, for the first time that it runs."""
        if name in self.of:
            yield
        else:
            with self.stage(name):
                yield

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {seconds:.2f}" for name, seconds in self.of.items())
        return f"Compiled in {sum(self.of.values()):.2f} s ({parts})."


ALLOCATIONS = 500_000
"""New objects after which Python looks for cycles among the youngest, where stages run; else it is 700 or 2,000."""


@contextmanager
def rare_collections() -> Iterator[None]:
    """Meanwhile Python looks for cycles among objects less often.

    The stages, torch.export above all, make millions of objects that stay: to go through them again and again takes a
    tenth of their time.
    """
    before = gc.get_threshold()
    if 0 < before[0] < ALLOCATIONS:
        gc.set_threshold(ALLOCATIONS, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


def check_promise(stage: str, findings: Iterable[str]) -> None:
    """Raise InternalError with the first finding, if there is any: the stage has broken its promise."""
    finding = next(iter(findings), None)
    if finding is not None:
        raise InternalError(stage, STAGES[: STAGES.index(stage)], finding)

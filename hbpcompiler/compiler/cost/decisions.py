"""What the planner decided, written down, so that a plan made at one length can be followed at another.

Routes, chunks and ways are chosen by size. Where a program is to serve other lengths than the one that it was planned
for, its stages run once more at those, and every choice is the one that was written down: so the same steps come out,
with other numbers in them. Choices are met in one order, as the same stages make them of the same graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, TypeVar

T = TypeVar("T")


class OtherDecisionsError(Exception):
    """At another length, other things are to be decided than at the first."""


@dataclass
class Decisions:
    """In order, what was decided and how."""

    made: list[tuple[str, Any]] = field(default_factory=list)


@dataclass
class _Follower:
    """Reads decisions that were made before; or writes them down, where there are none to follow."""

    decisions: Decisions
    follows: bool
    position: int = 0

    def next(self, what: str, decide: Callable[[], Any]) -> Any:
        if not self.follows:
            self.decisions.made.append((what, decide()))
            return self.decisions.made[-1][1]
        if self.position == len(self.decisions.made) or self.decisions.made[self.position][0] != what:
            raise OtherDecisionsError(f"at another length there is more, or less, to decide ({what})")
        self.position += 1
        return self.decisions.made[self.position - 1][1]


_CURRENT: ContextVar[_Follower | None] = ContextVar("decisions", default=None)


def decided(what: str, decide: Callable[[], T]) -> T:
    """What `decide` gives, and nothing that it asks on the way counts; or what was decided before, if that is
    followed."""
    follower = _CURRENT.get()
    if follower is None:
        return decide()
    with apart():
        found: T = follower.next(what, decide)
        return found


def are_followed() -> bool:
    """Whether decisions that were made before are being followed."""
    follower = _CURRENT.get()
    return follower is not None and follower.follows


@contextmanager
def apart() -> Iterator[None]:
    """Meanwhile nothing is written down or followed: what is asked to compare costs decides nothing."""
    token = _CURRENT.set(None)
    try:
        yield
    finally:
        _CURRENT.reset(token)


@contextmanager
def written_down() -> Iterator[Decisions]:
    """Meanwhile decisions are written down."""
    with _following(_Follower(Decisions(), False)) as follower:
        yield follower.decisions


@contextmanager
def followed(decisions: Decisions, to_the_end: bool = True) -> Iterator[None]:
    """Meanwhile these are followed, or the first of them. Raises OtherDecisionsError where there is more or less to
    decide."""
    with _following(_Follower(decisions, True)) as follower:
        yield
        if to_the_end and follower.position != len(decisions.made):
            raise OtherDecisionsError("at another length there is less to decide")


@contextmanager
def _following(follower: _Follower) -> Iterator[_Follower]:
    token = _CURRENT.set(follower)
    try:
        yield follower
    finally:
        _CURRENT.reset(token)

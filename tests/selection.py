"""Which tests wait for `make test-all`: those that are slow and say little beyond the others, each with its reason."""

from collections.abc import Callable, Collection, Iterable
from typing import Any

import pytest


def slow(reason: str) -> pytest.MarkDecorator:
    """Leaves a test, or a case of it, to `make test-all`."""
    return pytest.mark.slow(reason)


def cases(every: Iterable[Any], quick: Collection[Any] | Callable[[Any], bool], reason: str) -> list[Any]:
    """`every` for parametrize: those that are in `quick`, or for which it is true, run always, the others are slow."""
    chosen = quick if callable(quick) else quick.__contains__
    return [case if chosen(case) else pytest.param(case, marks=slow(reason)) for case in every]

"""Which tests wait for `make test-all`: those that are slow and say little beyond the others, each with its reason."""

import collections
from collections.abc import Callable, Collection, Iterable
from typing import Any

import pytest


def slow(reason: str) -> pytest.MarkDecorator:
    """Leaves a test, or a case of it, to `make test-all`."""
    return pytest.mark.slow(reason)


def few(count: int, reason: str) -> pytest.MarkDecorator:
    """Leaves all cases of a test but `count`, from its first to its last at equal distances, to `make test-all`."""
    return pytest.mark.few(count, reason)


def cases(every: Iterable[Any], quick: Collection[Any] | Callable[[Any], bool], reason: str) -> list[Any]:
    """`every` for parametrize: those that are in `quick`, or for which it is true, run always, the others are slow."""
    chosen = quick if callable(quick) else quick.__contains__
    return [case if chosen(case) else pytest.param(case, marks=slow(reason)) for case in every]


@pytest.hookimpl(tryfirst=True)  # before slow tests are left out
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What `few` says, of the cases that are not slow anyway."""
    tests: dict[str, list[pytest.Item]] = collections.defaultdict(list)
    for item in items:
        if item.get_closest_marker("few") and not item.get_closest_marker("slow"):
            tests[item.nodeid.split("[")[0]].append(item)
    for every in tests.values():
        marker = every[0].get_closest_marker("few")
        assert marker is not None
        count, reason = marker.args
        kept = {round(place * (len(every) - 1) / max(1, count - 1)) for place in range(count)}
        for place, item in enumerate(every):
            if place not in kept:
                item.add_marker(slow(reason))

"""How far Python's iterators have come: next() in a forward moves them, and a program cannot."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Iterator
from types import GeneratorType
from typing import Any


def is_iterator(value: Any) -> bool:
    """Whether it is one of Python's own; a class of the user's is looked into as any object."""
    return isinstance(value, Iterator) and type(value).__module__ in ("builtins", "itertools")


def place(item: Any) -> Any:
    """Another whenever an iterator has moved; what cannot be told stays the same."""
    if isinstance(item, GeneratorType):
        frame = item.gi_frame
        return None if frame is None else [frame.f_lasti, *map(place, frame.f_locals.values())]
    if isinstance(item, tuple | list):
        return list(map(place, item))
    if not is_iterator(item):
        return item if isinstance(item, int | float | str) else type(item)
    left = operator.length_hint(item, -1)
    if left >= 0:
        return left
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            inner = item.__reduce__()
    except (TypeError, AttributeError):
        return repr(item)
    return list(map(place, inner[1:])) if isinstance(inner, tuple) else inner

"""What objects written in C keep, of which no attribute tells: results that functools remembers, numbers and texts in
memory."""

from __future__ import annotations

import array as python_arrays
import functools
import gc
import io
import queue
import sys
from collections.abc import Callable
from types import CellType
from typing import Any

IN_MEMORY = (io.StringIO, io.BytesIO)


def remembered(function: Any) -> tuple[dict[Any, Any], list[Any]] | None:
    """The dict that functools.lru_cache keeps for a function, and the results in its order. None for all else."""
    if not isinstance(function, functools._lru_cache_wrapper):
        return None
    # Python shows neither, but tells its garbage collector of both: [the kind, parts of links, the dict, the function].
    found = gc.get_referents(function)
    own = getattr(function, "__wrapped__", None)
    places = [number for number, item in enumerate(found) if item is own and type(found[number - 1]) is dict]
    if not places:
        return None
    at = places[-1]
    entries: dict[Any, Any] = found[at - 1]
    size = function.cache_info().maxsize
    if size is None or not entries:
        return entries, list(entries.values())
    links = found[1 : at - 1]
    step = len(links) // len(entries)  # key, result, and the kind of links
    results = {id(links[number]): links[number + 1] for number in range(0, len(links), step)}
    return entries, [results[id(key)] for key in entries]


def take_back(function: Any, entries: dict[Any, Any], before: dict[Any, Any]) -> None:
    """Entries are what they were before; where functools orders them by their use, there are none if some are new."""
    if len(entries) == len(before) and all(entries.get(key) is value for key, value in before.items()):
        return
    if function.cache_info().maxsize is None:
        entries.clear()
        entries.update(before)
    else:
        function.cache_clear()


def write_numbers(array: Any, found: bytes) -> None:
    """An array of Python's, numpy's or C's gets its numbers back. Tensors do not: a trace refuses what changes them."""
    numpy, ctypes = sys.modules.get("numpy"), sys.modules.get("ctypes")
    if isinstance(array, bytearray):
        array[:] = found
    elif isinstance(array, python_arrays.array):
        array[:] = python_arrays.array(array.typecode, found)
    elif isinstance(array, memoryview):
        if not array.readonly:
            array.cast("B")[:] = found
    elif ctypes is not None and isinstance(array, ctypes._SimpleCData | ctypes.Structure | ctypes.Union | ctypes.Array):
        ctypes.memmove(ctypes.addressof(array), found, len(found))
    elif numpy is not None and isinstance(array, numpy.ndarray) and array.flags.writeable and not array.dtype.hasobject:
        array[...] = numpy.ndarray(array.shape, array.dtype, found)


def contents(text: Any) -> Any:
    """What a text in memory holds, and the place in it; None if it is closed."""
    return None if text.closed else (text.getvalue(), text.tell())


def is_filled(cell: CellType) -> bool:
    """Whether a variable of a function around has a value."""
    try:
        _ = cell.cell_contents
    except ValueError:
        return False
    return True


def empty(cell: CellType) -> None:
    """The variable has no value again."""
    if is_filled(cell):
        del cell.cell_contents


def answering(value: Any) -> Callable[[], Any] | None:
    """What tells the contents of an object that holds some out of sight; None for all else."""
    if isinstance(value, IN_MEMORY):
        return lambda: contents(value)
    if isinstance(value, queue.SimpleQueue):
        return value.qsize
    if isinstance(value, functools._lru_cache_wrapper):
        return lambda: value.cache_info()[1:]  # for an implementation that does not show what is remembered
    return None


def write_back(text: Any, found: Any) -> None:
    """A text in memory gets its contents and place back."""
    if found is not None and contents(text) not in (found, None):
        text.seek(0)
        text.truncate()
        text.write(found[0])
        text.seek(found[1])

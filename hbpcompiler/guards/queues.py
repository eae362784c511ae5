"""What a forward puts into a queue between threads, or takes out of it, while it is run to see what it does.

Other threads may use the queue meanwhile: only what this thread has done is undone. A SimpleQueue, which is written in
C, shows nobody's part: it gets back what it held where there is no other thread.
"""

from __future__ import annotations

import heapq
import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

QUEUES = (queue.Queue, queue.SimpleQueue)
_here = threading.local()
_PUT, _TAKEN = "put", "taken"


class _Noting:
    """Queue.put and Queue.get, exchanged while any thread notes what it does: threads begin and end in any order."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._threads = 0
        self._own: tuple[Callable[..., None], Callable[..., Any]] | None = None

    def begin(self) -> None:
        owner: Any = queue.Queue
        with self._lock:
            self._threads += 1
            if self._own is None:
                put, get = self._own = owner.put, owner.get
                owner.put, owner.get = _putting(put), _getting(get)

    def end(self) -> None:
        owner: Any = queue.Queue
        with self._lock:
            self._threads -= 1
            if not self._threads and self._own is not None:
                owner.put, owner.get = self._own
                self._own = None


_NOTING = _Noting()


@contextmanager
def queues_noted() -> Iterator[None]:
    """Meanwhile it is noted what this thread does to queues."""
    if hasattr(_here, "noted"):
        yield
        return
    _here.noted = list[tuple[Any, str, Any]]()
    _NOTING.begin()
    try:
        yield
    finally:
        _NOTING.end()
        del _here.noted


def _putting(put: Callable[..., None]) -> Callable[..., None]:
    def putting(held: Any, item: Any, *given: Any, **named: Any) -> None:
        put(held, item, *given, **named)
        if hasattr(_here, "noted"):
            _here.noted.append((held, _PUT, item))

    return putting


def _getting(get: Callable[..., Any]) -> Callable[..., Any]:
    def getting(held: Any, *given: Any, **named: Any) -> Any:
        item = get(held, *given, **named)
        if hasattr(_here, "noted"):
            _here.noted.append((held, _TAKEN, item))
        return item

    return getting


def waiting(held: Any) -> list[Any] | None:
    """What a SimpleQueue holds; None where another thread would see that it is taken out for that."""
    if isinstance(held, queue.Queue) or threading.active_count() > 1:
        return None
    found = [held.get_nowait() for _ in range(held.qsize())]
    for item in found:
        held.put(item)
    return found


def undo(held: Any, before: list[Any] | None) -> None:
    """A queue is as if this thread had done nothing to it; `before` is what was waiting in it."""
    if isinstance(held, queue.Queue):
        noted = getattr(_here, "noted", [])
        own = [entry for entry in noted if entry[0] is held]
        noted[:] = [entry for entry in noted if entry[0] is not held]
        with held.mutex:
            for _, what, item in reversed(own):
                _undo(held, what, item)
    elif before is not None and (found := waiting(held)) is not None and not _same(found, before):
        for _ in found:
            held.get_nowait()
        for item in before:
            held.put(item)


def _undo(held: Any, what: str, item: Any) -> None:
    items = held.queue
    if what == _PUT:
        place = next((place for place in reversed(range(len(items))) if items[place] is item), None)
        if place is not None:  # else another thread has taken it
            del items[place]
            held.unfinished_tasks -= 1
            if isinstance(held, queue.PriorityQueue):
                heapq.heapify(items)
    elif isinstance(held, queue.PriorityQueue):
        heapq.heappush(items, item)
    elif isinstance(held, queue.LifoQueue):
        items.append(item)
    else:
        items.appendleft(item)


def _same(some: list[Any], others: list[Any]) -> bool:
    return len(some) == len(others) and all(one is other for one, other in zip(some, others, strict=True))

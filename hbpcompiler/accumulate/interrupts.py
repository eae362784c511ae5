"""Ctrl-C at a time that suits: not while a batch is half added, which a checkpoint would then count twice."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Ctrl-C inside counts behind it. In the main thread, that is: Python interrupts no other."""
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or before is None:
        yield
        return
    come: list[tuple[int, FrameType | None]] = []
    signal.signal(signal.SIGINT, lambda number, frame: come.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if come and callable(before):
        before(*come[0])

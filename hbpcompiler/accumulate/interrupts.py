"""Ctrl-C at a time that suits: not while a batch is half added, which a checkpoint would then count twice."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any


class Interrupts:
    """Inside, Ctrl-C counts behind what is `whole`; at once elsewhere.

    In the main thread, that is: Python interrupts no other. The handler is there for the whole run: to change it takes
    as long as some additions.
    """

    def __init__(self) -> None:
        self._busy = False
        self._come: list[tuple[int, FrameType | None]] = []
        self._before: Any = None

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            before = signal.getsignal(signal.SIGINT)
            if callable(before):  # neither ignored, nor by a handler that is not Python's
                self._before = before
                signal.signal(signal.SIGINT, self._noted)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def whole(self) -> Whole:
        """What is inside is done as a whole."""
        return Whole(self)

    def begin(self) -> None:
        """From now on Ctrl-C waits."""
        self._busy = True

    def end(self, well: bool) -> None:
        """No longer; one that has come counts now, unless another error is on its way."""
        self._busy = False
        if well and self._come:
            self._passed_on(*self._come.pop())

    def _noted(self, number: int, frame: FrameType | None) -> None:
        if self._busy:
            self._come[:] = [(number, frame)]
        else:
            self._passed_on(number, frame)

    def _passed_on(self, number: int, frame: FrameType | None) -> None:
        self._before(number, frame)


class Whole:
    """For `with`: a generator would take longer than a small batch's additions."""

    def __init__(self, interrupts: Interrupts) -> None:
        self._interrupts = interrupts

    def __enter__(self) -> None:
        self._interrupts.begin()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._interrupts.end(well=kind is None)

"""What torch writes while it traces, beside what it raises: pages before an error that we turn into one sentence."""

from __future__ import annotations

import io
import logging
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr

from hbpcompiler.system.callers import has_stderr

_NOISY = ("torch.fx.experimental.symbolic_shapes", "torch._subclasses.fake_tensor", "torch.export", "torch._export")


@contextmanager
def quiet_loggers() -> Iterator[None]:
    levels = {name: logging.getLogger(name).level for name in _NOISY}
    for name in _NOISY:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


class _KeptBack(io.StringIO):
    """What the thread that makes it writes is kept; others write to stderr as before."""

    def __init__(self) -> None:
        super().__init__()
        self._thread, self._stderr = threading.current_thread(), sys.stderr if has_stderr() else None

    def write(self, text: str) -> int:
        if threading.current_thread() is self._thread or self._stderr is None:
            return super().write(text)
        return self._stderr.write(text)


@contextmanager
def prints_of_what_succeeds() -> Iterator[None]:
    """What this thread prints on stderr is kept back, and left out if there is an error: of one whose reason is a value
    torch prints the graph so far, even where another try follows."""
    printed = _KeptBack()
    with redirect_stderr(printed):
        yield
    if printed.getvalue() and has_stderr():
        sys.stderr.write(printed.getvalue())  # without an error it is the user's

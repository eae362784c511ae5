"""Writing a log: lines are added and flushed one by one; training goes on where they cannot be."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hbpcompiler.errors import InputError, LogWarning
from hbpcompiler.runs.lines import encoded
from hbpcompiler.runs.reading import FORMAT, VERSION, Run, read
from hbpcompiler.system.callers import level_of_caller


class Log:
    """A file of JSON lines that only ever grows.

    What is wrong before the first line is an InputError: a folder that is missing or cannot be written, a file that is
    something else, which stays as it is. What goes wrong later (a full disk) is a LogWarning, once; lines wait
    and are written as soon as they can be.
    """

    def __init__(self, path: str | Path) -> None:
        """A file that is there already must be a log; it will be gone on with. Its cut-off last line is removed."""
        self.path = Path(path)
        self.before: Run | None = None
        """What the file told when it was opened; None for a new file."""
        self._waiting: list[bytes] = []
        self._warned = False
        self._size = 0
        """Of the file up to the last line that is whole."""
        there = os.path.exists(self.path)  # unlike Path's, False for a name that is too long, which opening it tells
        if there and (self.path.is_dir() or self.path.stat().st_size):
            self._check_name()
            self.before = read(self.path)
            self._size = self.before.end
        try:
            with self.path.open("ab") as file:
                if file.tell() > self._size:
                    file.truncate(self._size)
        except OSError as error:
            raise InputError(f"log: {self.path} cannot be written: {error.strerror}. Give the path of a file in a "
                             "folder that is there and can be written") from error

    def _check_name(self) -> None:
        if self.path.is_dir():
            raise InputError(f"log: {self.path} is a folder; give the path of a file in it, such as "
                             f"{self.path / 'run.jsonl'}")

    def write(self, line: Mapping[str, Any]) -> bool:
        """Adds a line; False where it has to wait."""
        self._waiting.append(encoded(line))
        try:
            self._append(b"".join(self._waiting))
        except OSError as error:
            self._warn(error)
            return False
        self._waiting.clear()
        self._warned = False
        return True

    def _append(self, text: bytes) -> None:
        """All of it, or nothing."""
        handle = os.open(self.path, os.O_WRONLY | os.O_APPEND)
        try:
            left = memoryview(text)
            while left:
                left = left[os.write(handle, left):]
            self._size += len(text)
        except OSError:
            os.ftruncate(handle, min(self._size, os.fstat(handle).st_size))
            raise
        finally:
            os.close(handle)

    def _warn(self, error: OSError) -> None:
        if not self._warned:
            warnings.warn(f"the log {self.path} cannot be written: {error.strerror}. Training goes on; lines are kept "
                          "and written once that is possible", LogWarning, stacklevel=level_of_caller())
        self._warned = True


__all__ = ["FORMAT", "VERSION", "Log"]

"""A bar that shows how far a long run is."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from tqdm import tqdm

from hbpcompiler.accumulate.sums import Sums
from hbpcompiler.system.callers import has_stderr


class Progress:
    """Batches done, with the loss so far and samples per second; nothing where there is no terminal."""

    def __init__(self, shown: bool, batches: int | None, done: int) -> None:
        # disable=None: tqdm itself sees whether there is a terminal.
        self._bar: Any = None
        if shown and has_stderr():
            self._bar = tqdm(total=batches, initial=done, unit="batch", disable=None)
        self._samples: int | None = None

    def advance(self, sums: Sums) -> None:
        """One batch more is in."""
        if self._bar is None or self._bar.disable:
            return
        if self._samples is None:
            self._samples = sums.samples  # of the first batch, in which programs are compiled
        seconds = self._bar.format_dict["elapsed"]
        rate = (sums.samples - self._samples) / seconds if seconds else 0.0
        self._bar.set_postfix_str(f"loss {float(sums.loss):.5g}, {rate:.0f} samples/s", refresh=False)
        self._bar.update()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.close()

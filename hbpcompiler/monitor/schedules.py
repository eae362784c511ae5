"""When a monitor looks: every so many steps, at steps that a function chooses, or within a share of the time."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from numbers import Integral
from typing import Any

from hbpcompiler.errors import OptionError

Chooses = Callable[[int], bool]
LAST_EXPONENT = 12


def logarithmic(per_decade: int = 10, last: int = 10**LAST_EXPONENT) -> Chooses:
    """Step 0, and so many steps between n and 10 n for every n, about evenly spaced on a logarithmic axis."""
    exponents = range(LAST_EXPONENT * per_decade + 1)
    steps = {0} | {round(10 ** (exponent / per_decade)) for exponent in exponents}
    return frozenset(step for step in steps if step <= last).__contains__


class Share:
    """Steps are due as long as the monitor has taken no more than its share of the time.

    Times are handed in: what a step took that a program was made in does not count, as that happens once.
    """

    def __init__(self, share: float) -> None:
        self.share = share
        self.spent = 0.0
        """Seconds in the monitor."""
        self.each = 0.0
        """Seconds of the last step that was tracked."""
        self.seen = 0

    def due(self, elapsed: float) -> bool:
        """`elapsed`: seconds since the first step, without those in which programs were made."""
        return self.seen < 2 or self.spent + self.each <= self.share * elapsed

    def took(self, seconds: float, tracked: bool) -> None:
        self.spent += seconds
        if tracked:
            self.seen += 1
            self.each = seconds


class Schedule:
    """What `every` says."""

    def __init__(self, every: Any) -> None:
        self.chooses: Chooses | None = None
        self.share: Share | None = None
        self.interval = 0
        if isinstance(every, bool):
            raise OptionError(_wrong(every))
        if isinstance(every, Integral):  # also numpy's
            if every < 1:
                raise OptionError(_wrong(every))
            self.interval, self.text = int(every), "every step" if every == 1 else f"every {every} steps"
        elif every == "logarithmic":
            self.chooses, self.text = logarithmic(), "logarithmically spaced steps"
        elif isinstance(every, str) and (found := re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*%\s*", every)):
            percent = float(found[1])
            if not 0 < percent <= 100:
                raise OptionError(_wrong(every))
            self.share, self.text = Share(percent / 100), f"at most {percent:g} % of the time"
        elif callable(every):
            self.chooses, self.text = every, "steps that a function chooses"
        else:
            raise OptionError(_wrong(every))

    def due(self, step: int, elapsed: float) -> bool:
        if self.interval:
            return step % self.interval == 0
        if self.chooses is not None:
            return bool(self.chooses(step))
        assert self.share is not None
        return self.share.due(elapsed)

    def took(self, seconds: float, tracked: bool, made_programs: bool) -> None:
        """Time spent in a step; what made programs is no measure."""
        if self.share is not None:
            self.share.took(0.0 if made_programs or not math.isfinite(seconds) else seconds, tracked)


def _wrong(every: Any) -> str:
    return (f"every must be a number of steps (16), a share of the time (\"5%\"), \"logarithmic\" or a function of the "
            f"step's number that says whether to look, not {every!r}")

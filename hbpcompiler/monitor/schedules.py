"""When a monitor looks: every so many steps, at steps that a function chooses, or within a share of the time."""

from __future__ import annotations

import re
from collections.abc import Callable
from numbers import Integral
from typing import Any

from hbpcompiler.errors import OptionError

Chooses = Callable[[int], bool]
Clock = Callable[[], float]
LAST_EXPONENT = 12


def logarithmic(per_decade: int = 10, last: int = 10**LAST_EXPONENT) -> Chooses:
    """Step 0, and so many steps between n and 10 n for every n, about evenly spaced on a logarithmic axis."""
    exponents = range(LAST_EXPONENT * per_decade + 1)
    steps = {0} | {round(10 ** (exponent / per_decade)) for exponent in exponents}
    return frozenset(step for step in steps if step <= last).__contains__


AFTERWARDS = 5
"""Training steps that are slower behind one that was looked at: what they read is in the processor's cache no more."""
RECENT = 0.05
"""Weight of a new training step in what they usually take."""
EARLY = 0.5
"""Of the steps that are expected until one may be due, so many are let pass before the clock is asked again."""


class Share:
    """Steps are due as long as the monitor has taken no more than its share of the time.

    Times are handed in: of a clock, in seconds. Those in which a program was made do not count, as that happens once;
    what training steps behind a look take longer than others does.
    """

    def __init__(self, share: float) -> None:
        self.share = share
        self.spent = 0.0
        """Seconds of the monitor's."""
        self.each = 0.0
        """Seconds of the last step that was tracked."""
        self.seen = 0
        self._began: float | None = None
        self._last = 0.0
        """When the last call that asked for the time ended."""
        self._step = 0
        """Which one it was."""
        self._not_counted = 0.0
        self._usual = 0.0
        """Seconds of a training step; 0 as long as none is known."""
        self._slower = 0.0
        """What those behind the last look have taken beyond that."""
        self._behind = AFTERWARDS
        """How many there have been."""

    def due(self, step: int, now: float) -> bool:
        if self._began is None:
            self._began = now
        else:
            self._passed(now - self._last, max(1, step - self._step))
        self._last, self._step = now, step
        return self.seen < 2 or self.spent + self.each <= self.share * self.elapsed(now)

    def next_due(self) -> int:
        """The first step after the last one that may be due; the clock need not be asked before."""
        missing = (self.spent + self.each) / self.share - self.elapsed(self._last)
        may_pass = int(EARLY * missing / self._usual) if self._usual and self._behind == AFTERWARDS else 0
        return self._step + max(1, may_pass)

    def elapsed(self, now: float) -> float:
        """Seconds that count."""
        return now - (now if self._began is None else self._began) - self._not_counted

    def pause(self, start: float, end: float) -> None:
        """Time that does not count; for measurements."""
        self._not_counted += end - start
        self._last += end - start

    def took(self, now: float, tracked: bool, made_programs: bool) -> None:
        """At the end of a call that looked at something."""
        seconds, self._last = now - self._last, now
        if made_programs:
            self._not_counted += seconds
            seconds = 0.0
        self.spent += seconds
        self._slower, self._behind = 0.0, 0
        if tracked:
            self.seen += 1
            self.each = seconds

    def _passed(self, seconds: float, steps: int) -> None:
        """So many training steps since the last call that asked for the time."""
        each = seconds / steps
        if not self._usual:
            self._usual = each if self._behind == AFTERWARDS else 0.0
            self._behind = min(AFTERWARDS, self._behind + steps)
        elif self._behind == AFTERWARDS:
            paused = each > 2 * self._usual  # it may have been one step alone
            self._usual += RECENT * self._usual if paused else min(1.0, RECENT * steps) * (each - self._usual)
        else:
            self._behind = min(AFTERWARDS, self._behind + steps)
            before, self._slower = max(0.0, self._slower), self._slower + seconds - steps * self._usual
            self.spent += min(max(0.0, self._slower), self.each) - min(before, self.each)


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

    def due(self, step: int, clock: Clock) -> bool:
        if self.interval:
            return step % self.interval == 0
        if self.chooses is not None:
            return bool(self.chooses(step))
        assert self.share is not None
        return self.share.due(step, clock())

    def next_due(self, step: int) -> int:
        """The first step after this one, which was not due, that may be: until then nothing need be asked."""
        if self.interval:
            return step - step % self.interval + self.interval
        return step + 1 if self.share is None else self.share.next_due()

    def took(self, clock: Clock, tracked: bool, made_programs: bool) -> None:
        """A step that was looked at ends now."""
        if self.share is not None:
            self.share.took(clock(), tracked, made_programs)


def _wrong(every: Any) -> str:
    return (f"every must be a number of steps (16), a share of the time (\"5%\"), \"logarithmic\" or a function of the "
            f"step's number that says whether to look, not {every!r}")

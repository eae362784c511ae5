"""What preconditioners and optimizers are given, checked before anything happens."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from numbers import Real
from typing import Any

from torch import Tensor

from hbpcompiler.compiled import compile as compile_model
from hbpcompiler.errors import OptionError, OptionTypeError, listing


class Checked:
    """Collects what is wrong with options, and says all of it at once."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.findings: list[str] = []

    def number(self, name: str, value: Any, least: float = 0.0, *, above: bool = False, most: float = math.inf,
               optional: bool = False) -> None:
        """A finite number from `least` (or above it) to `most`; a tensor of one number, too, as torch takes it."""
        if optional and value is None:
            return
        real = isinstance(value, Real) or (isinstance(value, Tensor) and value.dim() == 0)
        fits = real and not isinstance(value, bool) and math.isfinite(value)
        if not fits or value < least or value > most or (above and value == least):
            low = f"above {least:g}" if above else f"at least {least:g}"
            high = "" if most == math.inf else f" and at most {most:g}"
            none = ", or None" if optional else ""
            self.findings.append(f"{name} must be a number, {low}{high}{none}, not {value!r}")

    def whole(self, name: str, value: Any, least: int = 1) -> None:
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            self.findings.append(f"{name} must be a whole number, at least {least}, not {value!r}")

    def flag(self, name: str, value: Any) -> None:
        if not isinstance(value, bool):
            self.findings.append(f"{name} must be True or False, not {value!r}")

    def one_of(self, name: str, value: Any, choices: tuple[str, ...]) -> None:
        if not isinstance(value, str) or value not in choices:
            self.findings.append(f"{name} {value!r} is unknown; choose one of {', '.join(choices)}")

    def intervals(self, update_every: Any, invert_every: Any) -> None:
        """An inverse is made of averages that have just been updated."""
        self.whole("update_every", update_every)
        self.whole("invert_every", invert_every)
        if not self.findings and invert_every % update_every:
            self.findings.append(f"invert_every={invert_every} must be a multiple of update_every={update_every}")

    def done(self) -> None:
        """Raises OptionError that lists the findings, if there are any."""
        if self.findings:
            raise OptionError(listing(f"{self.title} cannot be made:", self.findings))


def options_of_compile(given: Mapping[str, Any]) -> dict[str, Any]:
    """What is handed on to `hbp.compile`."""
    own = {"quantities", "joint_bias", "example_inputs", "groups", "clipping"} & given.keys()
    if own:
        instead = "; groups of parameters are params=[{'params': ..., 'lr': ...}, ...]" if "groups" in own else ""
        raise OptionError(f"{', '.join(sorted(own))}: set by the curvature that is asked for; leave it out{instead}")
    known = inspect.signature(compile_model).parameters
    if strangers := sorted(given.keys() - known.keys()):
        raise OptionTypeError(f"{', '.join(strangers)}: no argument here, and no option of hbp.compile either")
    return dict(given)

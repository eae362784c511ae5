"""Random numbers of a generator of the model's own, which a program cannot draw: torch's operations that take one have
no form with N samples, or are handed over as an object that no graph holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from hbpcompiler.compiler.trace.refusals.refusals import CannotFollowError
from hbpcompiler.system.modes import FunctionMode

OWN_GENERATOR = ("random numbers of a generator of your own are drawn here (generator=), which a program cannot do; "
                 "draw them from torch's own, without generator=, and seed that before the call or pass generator= to "
                 "it; or outside, and pass them in or keep them in a buffer")


class OwnGenerators(FunctionMode):
    """Around the user's code while it is traced: raises CannotFollowError where such numbers are drawn."""

    def __torch_function__(self, function: Callable[..., Any], types: Sequence[type], arguments: Any = (),
                           named: Any = None) -> Any:
        named = dict(named or {})
        own = named.pop("generator", None)  # None goes, too: with it torch takes no symbolic lengths
        if own is not None or any(isinstance(item, torch.Generator) for item in arguments):
            raise CannotFollowError(OWN_GENERATOR)
        return function(*arguments, **named)

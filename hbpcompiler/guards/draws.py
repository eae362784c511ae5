"""What a program cannot draw: random numbers of Python and numpy, next() of an iterator. A trace sees constants."""

from __future__ import annotations

import pickle
import random
import sys
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any, TypeVar

from hbpcompiler.errors import ModelError
from hbpcompiler.guards.atoms import is_own
from hbpcompiler.guards.iterators import is_iterator, place

Result = TypeVar("Result")


class Draws:
    """The states of generators: Python's and numpy's own, and those that the model's Python state holds."""

    def __init__(self, generators: Sequence[Any]) -> None:
        self._generators: list[Any] = [random, *generators]
        numpy = sys.modules.get("numpy")
        if numpy is not None:
            self._generators.append(numpy.random)
        self._before = self._states()

    def put_back(self) -> None:
        """As they were."""
        for generator, state in zip(self._generators, self._before, strict=True):
            _set_state(generator, pickle.loads(state))

    def _states(self) -> list[bytes]:
        return [_state(generator) for generator in self._generators]

    def moved(self) -> list[str]:
        """Names of the generators that have been drawn from."""
        return [_title(generator) for generator, before, now in zip(
            self._generators, self._before, self._states(), strict=True) if before != now]


def is_generator(value: Any) -> bool:
    """Whether an object is one of Python's or numpy's generators of random numbers, or an iterator of Python's own."""
    numpy = sys.modules.get("numpy")
    of_numpy = numpy is not None and isinstance(value, numpy.random.Generator | numpy.random.RandomState)
    of_python = isinstance(value, random.Random) and not isinstance(value, random.SystemRandom)  # which has no state
    return of_numpy or of_python or is_iterator(value)


def refuse_draws(generators: Sequence[Any], run: Callable[[], Result]) -> Result:
    """`run` a model and its loss; ModelError, with the line, if that draws from generators other than torch's."""
    draws = Draws(generators)
    try:
        result = run()
        moved = draws.moved()
        if not moved:
            return result
        place = _line_that_draws(generators, run)
    finally:
        draws.put_back()
    raise ModelError(
        f"the model or the loss draws from {' and '.join(moved)}{place}: a program would repeat one draw for "
        "ever. Draw with torch (torch.rand, torch.randint), which programs do at each call, or outside, and pass "
        "the number as an input or an attribute")


def _line_that_draws(generators: Sequence[Any], run: Callable[[], Any]) -> str:
    """Runs once more, line by line of the user's code, until a generator has moved."""
    draws, found = Draws(generators), list[str]()
    last: dict[int, int] = {}

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        if not is_own(frame.f_code.co_filename):
            return None
        if not found and event in ("line", "return") and id(frame) in last and draws.moved():
            found.append(f", {frame.f_code.co_filename}:{last[id(frame)]}")
        last[id(frame)] = frame.f_lineno
        if event == "return":  # another frame may get its id
            del last[id(frame)]
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        run()
    finally:
        sys.settrace(before)
    return found[0] if found else ""


def _state(generator: Any) -> bytes:
    if is_iterator(generator):
        return pickle.dumps(repr(place(generator)))
    own = getattr(generator, "bit_generator", None)
    if own is not None and hasattr(own, "state"):
        return pickle.dumps(own.state)
    get = getattr(generator, "getstate", None) or generator.get_state
    return pickle.dumps(get())


def _set_state(generator: Any, state: Any) -> None:
    if is_iterator(generator):
        return  # it has no way back; where one has moved there is an error
    own = getattr(generator, "bit_generator", None)
    if own is not None and hasattr(own, "state"):
        own.state = state
    else:
        (getattr(generator, "setstate", None) or generator.set_state)(state)


def _title(generator: Any) -> str:
    if generator is random:
        return "Python's random module"
    if generator is getattr(sys.modules.get("numpy"), "random", None):
        return "numpy.random"
    if is_iterator(generator):
        return f"an iterator ({type(generator).__qualname__})"
    return f"a {type(generator).__module__}.{type(generator).__qualname__}"

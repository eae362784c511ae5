"""Numbers and truths that Python code makes of tensors: bool(x), x.item(), torch.equal(x, y).

A tensor that is being traced has no values. Where the code only checks one (`statements`), or where it depends on
constants alone, what it was in a run on the user's own rows is told again. Everywhere else torch's refusal stands:
what is computed would depend on values.
"""

from __future__ import annotations

import functools
import sys
import threading
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx.experimental.proxy_tensor import get_proxy_mode, get_proxy_slot
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from hbpcompiler.compiler.trace.conditions.ways import Ways, asked_by
from hbpcompiler.compiler.trace.patches.replaced import replaced
from hbpcompiler.compiler.trace.refusals.refusals import CONTROL, NUMBER, CannotFollowError
from hbpcompiler.compiler.trace.source.statements import Place, only_checks, place_of

METHODS = ("__bool__", "__int__", "__float__", "__index__", "__contains__", "item", "is_nonzero", "equal", "allclose")
"""What makes a Python value of a tensor's values."""
FUNCTIONS = ("is_nonzero", "equal", "allclose")
"""Those that torch also has as functions."""

TRUTHS = ("__bool__", "is_nonzero")
OF_TRUTHS: dict[str, Callable[[bool], bool | int | float]] = {"item": bool, "__int__": int, "__float__": float}
"""What makes a Python value of a truth, and of which kind."""
NUMBERS = ("__int__", "__float__", "__index__", "item")

Key = tuple[str, Place]
Answers = dict[Key, list[Any]]
"""What each place in the code was told, in order, by the name of the method."""
_Made = Callable[[str, FrameType, Callable[[], Any], tuple[Any, ...]], Any]


@contextmanager
def recorded() -> Iterator[Answers]:
    """Meanwhile whatever this thread's code makes of tensors' values is noted down."""
    answers: Answers = defaultdict(list)

    def note(name: str, frame: FrameType, original: Callable[[], Any], tensors: tuple[Any, ...]) -> Any:
        value = original()
        place = place_of(frame)
        if place is not None:
            answers[name, place].append(value)
        return value

    with _replaced(note):
        yield answers


@contextmanager
def told_again(answers: Answers, outermost: str, ways: Ways) -> Iterator[None]:
    """Meanwhile tensors without values answer as they did when `answers` were noted down, where that is harmless, and
    as if rows were there to conditions on masks, which are added to `ways`.

    `outermost` is the file that calls the user's code. Raises CannotFollowError where torch's refusal stands.
    """
    left = {key: deque(values) for key, values in answers.items()}

    def tell(name: str, frame: FrameType, original: Callable[[], Any], tensors: tuple[Any, ...]) -> Any:
        place = place_of(frame)
        waiting = left.get((name, place)) if place is not None else None
        fakes = [tensor for tensor in tensors if isinstance(tensor, FakeTensor)]
        if waiting and fakes and (all(map(_is_constant, fakes)) or only_checks(frame, outermost)):
            return waiting.popleft()
        is_truth = fakes and (name in TRUTHS or (name in OF_TRUTHS and fakes[0].dtype is torch.bool))
        if is_truth and (asked := asked_by(fakes[0])) is not None:
            return OF_TRUTHS.get(name, bool)(ways.answer(frame, asked[0], fakes[0], asked[1]))
        try:
            return original()
        except Exception as error:
            if not fakes:
                raise
            raise CannotFollowError(NUMBER if name in NUMBERS else CONTROL) from error

    asserts: Callable[[ShapeEnv], bool] = ShapeEnv._is_python_assert

    def is_assert(environment: ShapeEnv) -> bool:
        """Torch goes on behind `assert`; not where what it raises may be swallowed."""
        frame = environment._get_user_frame()
        return frame is not None and asserts(environment) and only_checks(frame, outermost)

    with _replaced(tell), replaced(ShapeEnv, "_is_python_assert", is_assert):
        yield


def _is_constant(tensor: Tensor) -> bool:
    """Whether a traced tensor comes from nothing but literals of the code: not from the batch, its size, parameters,
    buffers, tensors from outside or random draws."""
    mode = get_proxy_mode()
    made = get_proxy_slot(tensor, mode.tracer, None) if mode is not None else None
    if made is None:
        return False
    waiting, seen = [made.proxy.node], set()
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        if node.op == "get_attr":
            # Tensors that the code makes of numbers are copied at once; others are from outside.
            if not all("lift_fresh" in str(user.target) for user in node.users):
                return False
        elif node.op != "call_function" or torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
            return False
        waiting += node.all_input_nodes
    return True


@contextmanager
def _replaced(made: _Made) -> Iterator[None]:
    """Meanwhile `made` stands for METHODS and FUNCTIONS in this thread."""
    thread = threading.current_thread()
    inside = threading.local()

    def replacement(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def replaced(*args: Any, **kwargs: Any) -> Any:
            if threading.current_thread() is not thread or getattr(inside, "busy", False):
                return original(*args, **kwargs)
            inside.busy = True  # torch makes one of these values by way of another
            try:
                tensors = tuple(item for item in args if isinstance(item, Tensor))
                return made(name, sys._getframe(1), lambda: original(*args, **kwargs), tensors)
            finally:
                inside.busy = False

        return replaced

    owners: list[tuple[Any, str]] = [(Tensor, name) for name in METHODS] + [(torch, name) for name in FUNCTIONS]
    own = [(owner, name, vars(owner).get(name)) for owner, name in owners]
    for owner, name in owners:
        setattr(owner, name, replacement(name, getattr(owner, name)))
    try:
        yield
    finally:
        for owner, name, before in own:
            if before is None:
                delattr(owner, name)  # it is inherited
            else:
                setattr(owner, name, before)

"""Whether a condition on rows only saves work: a trace on which it is answered as without rows comes, without rows, to
what the trace with rows comes to."""

from __future__ import annotations

import itertools
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.fx import Graph, Node

from hbpcompiler.compiler.trace.conditions.ways import Asked, Ways, asked_of, asked_of_length
from hbpcompiler.compiler.trace.fx_graph.functional import with_fewer_outputs
from hbpcompiler.compiler.trace.refusals.refusals import CONTROL
from hbpcompiler.compiler.trace.rows.forms import ZERO, Form, Known, Numbers
from hbpcompiler.compiler.trace.rows.without_rows import Forms
from hbpcompiler.compiler.trace.source.source import is_library
from hbpcompiler.errors import ModelError, NoLossError, listing
from hbpcompiler.rules.shared.torch_operations import COPIES

OF_NO_TENSORS = ("non-empty TensorList", "non-empty list of Tensors", "at least one tensor")
"""What torch says of stack([]) and cat([])."""
LITERAL = "written as numbers"
OTHERWISE = "where the mask picks nothing, this is not seen to come to the same as the other way"
NO_FILE = "a condition in code that is in no file (exec, python -c)"
ALL_WAYS = 4
"""Of so many masks each choice of those that pick nothing is tried; of more, each by itself, all, all but one, and of
each other number one choice."""


def only_saving_work(program: Any, ways: Ways, traced: Callable[[Ways], tuple[Any, bool]],
                     ) -> tuple[Any, dict[Node, set[Node]]]:
    """An ExportedProgram without the conditions that it puts out last, and its means that have to be zero where no row
    is picked (see `Forms`). Raises ModelError unless all conditions only save work.

    `traced`: other ways -> their program, and whether what the model returns is built alike.
    """
    if not ways.lines:
        return program, {}
    numbers = Numbers()
    kept: list[Tensor] = []
    with_rows = _Traced(program, numbers, len(ways.lines), kept)
    reasons: dict[str, None] = {}
    zero_means: dict[Node, set[Node]] = {}
    lines = list(ways.lines)
    tried: set[frozenset[int]] = set()
    while waiting := _choices(len(lines)) - tried:
        empty = min(waiting, key=sorted)
        tried.add(empty)
        other = Ways(empty.__contains__)
        try:
            program_without, returns_alike = traced(other)
        except Exception as error:
            if other.contradicts or _stops_there(error):
                continue
            if not isinstance(error, NoLossError):
                raise
            all_of_them = empty == frozenset(range(len(ways.lines)))
            if error.number or not all_of_them or not with_rows.is_zero_of_nothing():
                reasons |= _reason(lines, empty)
            continue
        lines += other.lines[len(lines):]  # what is asked only where others pick nothing
        found = with_rows.comes_to(_Traced(program_without, numbers, len(other.lines), kept), other.empties)
        for mean, masks in (found or {}).items():
            zero_means.setdefault(mean, set()).update(masks)
        if found is None or not returns_alike:
            reasons |= _reason(lines, empty)
    if reasons:
        raise ModelError(listing(
            f"the model cannot be traced: {CONTROL}. A branch that only saves work where a mask picks nothing is "
            "followed:", list(reasons),
            "Without rows a mask picks nothing, and nothing is computed: such a branch may be left out. A mask whose "
            "branch lies in another's is followed where it is part of that one: inner = outer & (y == 1)."))
    return with_fewer_outputs(program, len(ways.lines)), zero_means


def _choices(masks: int) -> set[frozenset[int]]:
    """Of the masks those that pick nothing."""
    every = range(masks)
    if masks <= ALL_WAYS:
        return {frozenset(some) for size in range(1, masks + 1) for some in itertools.combinations(every, size)}
    first_ones = {frozenset(range(size)) for size in range(2, masks + 1)}
    return first_ones | {frozenset(some) for size in (1, masks - 1) for some in itertools.combinations(every, size)}


def _reason(lines: Sequence[str], empty: frozenset[int]) -> dict[str, None]:
    return {f"{lines[min(empty)].removesuffix(':') or NO_FILE}: {OTHERWISE}": None}


def _stops_there(error: BaseException) -> bool:
    """Whether nothing is computed of such a batch: the user's own code says `raise` or `assert`, as if len(rows) == 0:
    raise; or torch takes no empty list."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    raised = not is_library(frame.f_code.co_filename)
    return raised or any(words in str(error) for words in OF_NO_TENSORS)


def note_literals(program: Any) -> None:
    """Mark the constants that the code writes as numbers, torch.tensor(0.5): each trace makes them anew, where those
    that it finds in Python's state are the same in each."""
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.users:
            node.meta[LITERAL] = all(user.target in COPIES for user in node.users)


class _Traced:
    """One trace, as forms."""

    def __init__(self, program: Any, numbers: Numbers, conditions: int, kept: list[Tensor]) -> None:
        """`kept`: the constants of all traces, so that no two are at one address."""
        self.graph, self.numbers = program.graph, numbers
        self.inputs = dict(_constants(program, numbers, kept))
        outputs: list[Any] = [*program.graph.output_node().args[0]]
        self.loss = next(node for node in outputs if node.name == program.graph_signature.user_outputs[0])
        self.outputs, self.conditions = outputs[: len(outputs) - conditions], outputs[len(outputs) - conditions :]

    def is_zero_of_nothing(self) -> bool:
        """Whether the loss is zero where all that was asked picks nothing, as where a sum of losses begins as 0.0."""
        asked = [_asked_of(self.graph, condition) for condition in self.conditions]
        if _contradicts(asked):
            return True
        met, own = Forms(self.graph, self.numbers, self.inputs, Known.of(asked)).met, {*filter(None, asked)}
        return Forms(self.graph, self.numbers, self.inputs, met, zero_means_of=own).is_zero(self.loss)

    def comes_to(self, other: _Traced, empties: Sequence[bool]) -> dict[Node, set[Node]] | None:
        """Whether this comes to the other where these masks, which the other asks, pick nothing: the means that have to
        be zero there, or None."""
        answers = [(_asked_of(other.graph, condition), empty)
                   for condition, empty in zip(other.conditions, empties, strict=True)]
        asked = [each for each, empty in answers if empty]
        if _contradicts(asked):
            return {}
        there = Forms(other.graph, self.numbers, other.inputs, Known.of(asked))
        if any(each is not None and there.says_otherwise(each) for each, empty in answers if not empty):
            return {}  # nor does a part of nothing pick rows
        own = {found for found in (_asked_of(self.graph, condition) for condition in self.conditions)
               if found is not None}
        here = Forms(self.graph, self.numbers, self.inputs, there.met, zero_means_of=own)
        return here.zero_means if here.outputs(self.outputs) == there.outputs(other.outputs) else None


def _contradicts(asked: Sequence[Asked | None]) -> bool:
    """No mask picks neither the one rows nor the others."""
    return any(each is not None and Asked(each.mask, not each.inverted) in asked for each in asked)


def _asked_of(graph: Graph, condition: Node) -> Asked | None:
    """What a condition asks for rows."""
    value = condition.meta["val"]
    if isinstance(value, Tensor):
        found = asked_of(condition)
        return None if found is None else found[0]
    return asked_of_length(value.node.expr, graph)


def _constants(program: Any, numbers: Numbers, kept: list[Tensor]) -> Iterator[tuple[str, Form]]:
    """Of tensors that a trace found, each of which is itself, or made, which are what their numbers are; their names
    are those of their order."""
    literal = {node.name for node in program.graph.nodes if node.meta.get(LITERAL)}
    tensors: Mapping[str, Any] = program.constants
    for name, target in program.graph_signature.inputs_to_lifted_tensor_constants.items():
        value = tensors[target]
        kept.append(value)
        if name in literal and value.is_floating_point() and not value.any():
            yield name, (ZERO, (tuple(value.shape),), str(value.dtype))
            continue
        form = value.detach().cpu().contiguous().tolist() if name in literal else (
            value.data_ptr(), value.stride(), value.storage_offset())
        yield name, numbers.of(("constant", str(value.dtype), tuple(value.shape), str(form)))

"""Whether a condition on rows only saves work: a trace on which it is answered as without rows comes, without rows, to
what the trace with rows comes to."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor
from torch.fx import Node
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols
from torch.utils import _pytree as pytree

from hbpcompiler.compiler.trace.functional import with_fewer_outputs
from hbpcompiler.compiler.trace.refusals import CONTROL
from hbpcompiler.compiler.trace.source import is_library
from hbpcompiler.compiler.trace.ways import Ways, mask_of
from hbpcompiler.compiler.trace.without_rows import Form, Forms, Numbers
from hbpcompiler.errors import ModelError, listing
from hbpcompiler.rules.shared.torch_operations import PICKS, TRUE_PLACES

OTHERWISE = "where the mask picks nothing, the model comes to something else with it than without"


def only_saving_work(program: Any, ways: Ways, traced: Callable[[Ways], Any]) -> tuple[Any, set[Node]]:
    """An ExportedProgram without the conditions that it puts out last, and its means that have to be zero where no row
    is picked. `traced` goes other ways. Raises ModelError unless each condition only saves work."""
    if not ways.lines:
        return program, set()
    numbers, conditions = Numbers(), len(ways.lines)
    with_rows, reasons = _Traced(program, numbers, conditions), []
    zero_means: set[Node] = set()
    for number, line in enumerate(ways.lines):
        other = Ways(other=number)
        try:
            program_without = traced(other)
        except Exception as error:
            if _raised_by_user(error):  # as `if len(rows) == 0: raise` does: nothing is computed there
                continue
            raise
        found = with_rows.comes_to(_Traced(program_without, numbers, len(other.lines)), number)
        zero_means |= found or set()
        if found is None:
            reasons.append(f"{line.removesuffix(':')}: {OTHERWISE}")
    if reasons:
        raise ModelError(listing(
            f"the model cannot be traced: {CONTROL}. A branch that only saves work where a mask picks nothing is "
            "followed:", list(dict.fromkeys(reasons)),
            "Without rows a mask picks nothing, and nothing is computed: such a branch may be left out."))
    return with_fewer_outputs(program, conditions), zero_means


def _raised_by_user(error: BaseException) -> bool:
    """Whether the user's own code says `raise` or `assert`."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return not is_library(frame.f_code.co_filename)


class _Traced:
    """One trace, as forms."""

    def __init__(self, program: Any, numbers: Numbers, conditions: int) -> None:
        self.graph, self.numbers = program.graph, numbers
        self.inputs = {name: numbers.of(form) for name, form in _constants(program)}
        outputs: list[Any] = [*program.graph.output_node().args[0]]
        self.outputs, self.conditions = outputs[: len(outputs) - conditions], outputs[len(outputs) - conditions :]

    def comes_to(self, other: _Traced, number: int) -> set[Node] | None:
        """Whether this comes to the other where the condition of this number finds no rows: the means that have to be
        zero there, or None."""
        plain = Forms(self.graph, self.numbers, self.inputs).of
        masks, none = _without_rows(self.graph, self.conditions[number])
        false = {plain[mask] for mask in masks}
        here = Forms(self.graph, self.numbers, self.inputs, {*masks, *false}, none, plain=plain)
        there = Forms(other.graph, self.numbers, other.inputs, false)
        return here.zero_means if here.outputs(self.outputs) == there.outputs(other.outputs) else None


def _without_rows(graph: Any, condition: Node) -> tuple[set[Node], list[Any]]:
    """Masks that are all false, and symbols of lengths that are 0, where a condition finds no rows."""
    value = condition.meta["val"]
    if isinstance(value, Tensor):
        found = mask_of(condition)
        return (set() if found is None else {found[0]}), []
    symbols = list(value.node.expr.free_symbols)
    makers = [node for node in graph.nodes if node.target in PICKS | TRUE_PLACES
              and any(free_unbacked_symbols(part) & {*symbols} for part in pytree.tree_leaves(node.meta["val"]))]
    return {node.all_input_nodes[-1] for node in makers[:1]}, symbols


def _constants(program: Any) -> Iterator[tuple[str, Form]]:
    """Of tensors that a trace found or made, whose names are those of their order."""
    signature = program.graph_signature
    tensors: Mapping[str, Any] = program.constants
    for name, target in signature.inputs_to_lifted_tensor_constants.items():
        value = tensors[target].detach().cpu().contiguous()
        yield name, ("constant", str(value.dtype), tuple(value.shape), str(value.tolist()))

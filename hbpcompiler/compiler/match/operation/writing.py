"""How a rewriting adds an operation to a graph."""

from __future__ import annotations

from collections.abc import Mapping

from hbpcompiler.compiler.trace.graph import Operation, Source, Value
from hbpcompiler.rules.shared.written import Written


def write(call: Written, tensors: Mapping[str, Value], output: Value, source: Source) -> Operation:
    """The operation on these tensors, by slot; `source` is the user's line that it stands for."""
    return Operation(call.target, call.overload, output, dict(tensors), dict(call.attributes), 0, source)

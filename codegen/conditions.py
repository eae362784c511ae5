"""What a file was written for, checked in its first lines: at another length or size its numbers would be others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import sympy
from torch import fx
from torch.utils._sympy.printers import PythonPrinter

from hbpcompiler.codegen.naming import comment
from hbpcompiler.compiler.program import meta
from hbpcompiler.compiler.trace.sizes import Sizes

SIZES = range(1, 257)
"""Batches of which each is asked whether the file is for it."""


def conditions(given: Mapping[fx.Node, str], sizes: Sizes) -> list[str]:
    """A line for each input and target whose samples have axes, and for each condition on their number."""
    batch = {name: shape for node, name in given.items() if not meta.argument(node) and (shape := meta.shape(node))}
    found = [line for name, shape in batch.items() for line in _of_shape(name, shape)]
    return found + [line for name in list(batch)[:1] for line in _of_sizes(name, sizes)]


def _of_shape(name: str, shape: Sequence[str]) -> list[str]:
    """All axes after the sample axis at once; where some may have any length, the others one by one."""
    own = shape[1:]
    fixed = [length.isdigit() for length in own]
    if not any(fixed):
        return []
    condition = f"list({name}.shape[1:]) == [{', '.join(own)}]"
    if not all(fixed):
        condition = " and ".join(f"{name}.shape[{axis}] == {length}" for axis, length in enumerate(own, 1)
                                 if length.isdigit())
    return [f'assert {condition}, "{name} is not [{", ".join(shape)}], for which this file was written"']


def _of_sizes(name: str, sizes: Sizes) -> list[str]:
    """Conditions on N under which the model's code went this way, but for those that all batches fulfil."""
    found: list[str] = []
    samples = sympy.Symbol("N", integer=True, positive=True)
    for guard in sizes.conditions:
        if all(Sizes((guard,)).include(size) for size in SIZES):
            continue
        (symbol,) = guard.expr.free_symbols
        condition = PythonPrinter().doprint(guard.expr.subs(symbol, samples))
        message = comment(f"this file is for batches of N samples with {condition}").replace('"', "'")
        written = PythonPrinter().doprint(guard.expr.subs(symbol, sympy.Symbol(f"max(1, {name}.shape[0])")))
        found.append(f'assert {written}, "{message}"')
    return list(dict.fromkeys(found))

"""What a file was written for, checked in its first lines: at another length or size its numbers would be others."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import sympy
from torch import fx
from torch.utils._sympy.printers import PythonPrinter

from hbpcompiler.codegen.naming import comment
from hbpcompiler.compiler.program import meta
from hbpcompiler.compiler.program.lengths import is_formula, shown
from hbpcompiler.compiler.trace.sizes import Sizes

LENGTH = "T"
SIZES = range(1, 257)
"""Batches of which each is asked whether the file is for it."""


def conditions(given: Mapping[fx.Node, str], sizes: Sizes) -> list[str]:
    """A line for each input and target whose samples have axes, and for each condition on their number."""
    batch = {name: shape for node, name in given.items() if not meta.argument(node) and (shape := meta.shape(node))}
    length = next((f"{name}.shape[{axis}]" for name, shape in batch.items() for axis, text in enumerate(shape)
                   if is_formula(text) and shown(text) == LENGTH), LENGTH)
    found = [line for name, shape in batch.items() for line in _of_shape(name, shape, length)]
    return found + [line for name in list(batch)[:1] for line in _of_sizes(name, sizes)]


def _of_shape(name: str, shape: Sequence[str], length: str) -> list[str]:
    """All axes after the sample axis at once; where some may have any length, one by one: those that have not, and
    those whose length another's makes. `length` is where T is read."""
    own = shape[1:]
    if own and all(text.isdigit() for text in own):
        asked = [f"list({name}.shape[1:]) == [{', '.join(own)}]"]
    else:
        lengths = [(f"{name}.shape[{axis}]", re.sub(rf"\b{LENGTH}\b", length, shown(text)))
                   for axis, text in enumerate(own, 1) if text.isdigit() or is_formula(text)]
        asked = [f"{axis} == {found}" for axis, found in lengths if axis != found]
    return [f'assert {condition}, "{name} is not [{", ".join(shape)}], for which this file was written"'
            for condition in asked]


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

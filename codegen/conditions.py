"""What a file was written for, checked in its first lines: at another length or size its numbers would be others."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Sequence
from typing import Any

import sympy
from torch import fx
from torch.utils._sympy.printers import PythonPrinter

from hbpcompiler.arguments import SAMPLE_WEIGHTS
from hbpcompiler.codegen.naming import comment
from hbpcompiler.compiler.program import meta
from hbpcompiler.compiler.program.lengths import is_formula, shown
from hbpcompiler.compiler.trace.conditions.sizes import Sizes, is_always_fulfilled

SAMPLES, LENGTH = "N", "T"

PYTHONS = {"ToFloat": "float", "TruncToInt": "int", "FloatPow": "math.pow", "OpaqueUnaryFn_sqrt": "math.sqrt"}
"""What a file has, and TorchScript knows, in place of torch's functions of sizes."""


def conditions(given: Mapping[fx.Node, str], sizes: Sizes) -> list[str]:
    """A line for each input and target that has axes, and for each condition on the number of samples."""
    batch = {name: shape for node, name in given.items() if not meta.argument(node) and (shape := meta.shape(node))}
    length = next((f"{name}.shape[{axis}]" for name, shape in batch.items() for axis, text in enumerate(shape)
                   if is_formula(text) and shown(text) == LENGTH), LENGTH)
    first = next((name for name, shape in batch.items() if shape[0] == SAMPLES), "")
    found = [line for name, shape in batch.items() for line in _of_shape(name, shape, length, first)]
    found += [f'assert {name} is None or list({name}.shape) == [{first}.shape[0]], "{name} is not [N]"'
              for node, name in given.items() if first and meta.argument(node) == SAMPLE_WEIGHTS]
    return found + [line for name in list(batch)[:1] for line in _of_sizes(name, sizes)]


def _of_shape(name: str, shape: Sequence[str], length: str, first: str) -> list[str]:
    """All axes at once; where some may have any length, one by one: those that have not, and those whose length
    another's makes. `first` has as many samples as there are, `length` is where T is read."""
    known = [re.sub(rf"\b{LENGTH}\b", length, shown(text)) if is_formula(text) else text for text in shape]
    if shape[0] == SAMPLES:
        known[0] = f"{first}.shape[0]"
    fixed = [axis for axis, text in enumerate(shape) if text.isdigit() or text == SAMPLES or is_formula(text)]
    asked = []
    if len(fixed) < len(shape) or any(is_formula(text) for text in shape):
        places = [f"{name}.shape[{axis}]" for axis in range(len(shape))]
        asked = [f"{name}.dim() == {len(shape)}"]
        asked += [f"{places[axis]} == {known[axis]}" for axis in fixed if known[axis] != places[axis]]
    elif name != first:
        asked = [f"list({name}.shape) == [{', '.join(known)}]"]
    elif len(shape) > 1:
        asked = [f"list({name}.shape[1:]) == [{', '.join(known[1:])}]"]
    return [f'assert {condition}, "{name} is not [{", ".join(shape)}], for which this file was written"'
            for condition in asked]


def _of_sizes(name: str, sizes: Sizes) -> list[str]:
    """Conditions on N under which the model's code went this way, but for those that all batches fulfil."""
    found: list[str] = []
    samples = sympy.Symbol("N", integer=True, positive=True)
    for guard in sizes.conditions:
        if is_always_fulfilled(guard):
            continue
        (symbol,) = guard.expr.free_symbols
        condition = PythonPrinter().doprint(_in_python(guard.expr).subs(symbol, samples))
        message = comment(f"this file is for batches of N samples with {condition}").replace('"', "'")
        written = PythonPrinter().doprint(_in_python(guard.expr).subs(symbol, sympy.Symbol(f"max(1, {name}.shape[0])")))
        found.append(f'assert {written}, "{message}"')
    return list(dict.fromkeys(found))


def _in_python(condition: Any) -> Any:
    """In the functions of PYTHONS; floats as Python writes them."""
    called = condition.replace(lambda part: type(part).__name__ in PYTHONS,
                               lambda part: sympy.Function(PYTHONS[type(part).__name__], real=True)(*part.args))
    return called.xreplace({part: sympy.Symbol(repr(float(part)), positive=True)
                            for part in called.atoms(sympy.Float) if part > 0})


def between_lengths(code: str, tensor: int, axis: int, lowest: int, highest: int) -> str:
    """A file for any length that refuses those outside of these, with one more of its first lines; that axis of the
    batch's tensor of this number has the length."""
    program = next(each for each in ast.parse(code).body if isinstance(each, ast.ClassDef) and each.name == "Program")
    forward = next(each for each in program.body if isinstance(each, ast.FunctionDef) and each.name == "forward")
    length = f"{forward.args.args[2 + tensor].arg}.shape[{axis}]"  # behind self and state
    message = (f"{length} is not between {lowest} and {highest}, the lengths that this file was tried at: "
               "call compiled at others, then save again")
    others, lines = next(each for each in forward.body if not isinstance(each, ast.Assert)), code.splitlines(True)
    indent = " " * others.col_offset
    lines.insert(others.lineno - 1, f'{indent}assert {lowest} <= {length} <= {highest}, "{message}"\n')
    return "".join(lines)

"""What a loop's lines say: what it counts and why it takes so many a turn, and how its totals begin."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from torch import fx

from hbpcompiler.codegen.copying import letters_in
from hbpcompiler.codegen.functions import Functions
from hbpcompiler.codegen.places import PARAMETERS, entry_text
from hbpcompiler.codegen.printer import Text, quote
from hbpcompiler.codegen.roles import TOTAL
from hbpcompiler.compiler.program import meta
from hbpcompiler.compiler.program.lengths import length_at
from hbpcompiler.compiler.program.nodes import called
from hbpcompiler.compiler.program.writer import Loop

BY_NAME = "\0name"
"""Where the name of a total's parameter will stand."""
OTHER_LETTER = re.compile(r"\b(?!(?:outer|n|k|N)\b)[A-Za-z_]\w*\b")
"""Of a number that is an argument."""
MEBI = 2**20
PRODUCTS = (" @ ", "onednn_linear(")
"""How products of matrices are written."""
VIEWS = frozenset({"reshape", "unflatten", "flatten", "view"})
"""Of a product, which is summed in the same way."""
COUNTED = {"n": "samples", "k": "columns"}
"""By the letter of a loop's axis."""


@dataclass
class Totals:
    """Writes how totals begin that stand in tables."""

    functions: Functions
    look: Callable[[fx.Node], Text]

    def by_its_parameter(self, total: fx.Node, result: fx.Node) -> tuple[str, str] | None:
        """A square total as long as its parameter's first axis: text and shape that are the same for all such."""
        key = self.functions.places[result].key
        shape, lengths = meta.shape(total), self.functions.lengths.get(key)
        if shape is None or not lengths or total.kwargs or total.op != "call_method" or (
                shape != (lengths[0], lengths[0]) or total.args[1:] != ((int(shape[0]), int(shape[0])),)):
            return None
        like = self.look(cast("fx.Node", total.args[0]))[0]
        size = f"len({PARAMETERS}[{BY_NAME}])"
        return f"{like}.{total.target}(({size}, {size}))", "[outputs, outputs]"

    def zeros(self, entries: Mapping[tuple[str, str], Sequence[fx.Node]]) -> list[str]:
        """Totals that stand in tables, those of one size in a line or a loop."""
        lines = []
        places, listed = self.functions.places, self.functions.listed
        for (text, shape), nodes in entries.items():
            tables: dict[str, list[str]] = {}
            for node in nodes:
                tables.setdefault(places[node].table, []).append(places[node].key)
            for table, keys in tables.items():
                if len(keys) == 1:
                    key = quote(keys[0])
                    lines.append(f"{entry_text(table, key)} = {text.replace(BY_NAME, key)}  # {shape}")
                    continue
                keys.sort(key=lambda key: listed.keys.index(key) if key in listed.keys else -1)
                lines += [f"for name in {listed.text(keys)}:",
                          f"    {entry_text(table, 'name')} = {text.replace(BY_NAME, 'name')}  # {shape}"]
        return lines


def total_name(result: fx.Node) -> str:
    """What a loop's total is called that nobody named: after what is made of it."""
    readers = [user.meta.get("hint") for user in result.users if user.meta.get("hint")]
    return f"{readers[0]}_{TOTAL}" if readers else TOTAL


def counted(lead: fx.Node, loop: Loop) -> str:
    """What a loop goes through, in words."""
    if loop.letter not in COUNTED:
        return f"{loop.letter}s"
    shape = meta.shape(lead)
    merged = shape is not None and "*" in shape[loop.axis]  # samples times what each was cut into
    found = "rows" if merged else COUNTED[loop.letter]
    return found.removesuffix("s") if loop.chunk == 1 else found


def why(loop: Loop) -> str:
    """How large a turn's largest tensor is, which is why a turn takes no more; nothing in a function whose numbers are
    its arguments."""
    if letters_in(loop.body) or not isinstance(loop.chunk, int):
        return ""
    largest = max((_bytes(node, loop.chunk) for node in loop.body.nodes if node.op != "placeholder"), default=0)
    return f", its largest tensor {largest / MEBI:.1f} MiB" if largest >= MEBI / 2 else ""


def _bytes(node: fx.Node, chunk: int) -> int:
    shape, dtype = meta.shape(node), meta.dtype(node)
    if shape is None or dtype is None or any(OTHER_LETTER.search(length) for length in shape):
        return 0
    return dtype.itemsize * math.prod(length_at(length, chunk) for length in shape)


def with_shape(line: str, node: fx.Node) -> str:
    return line if "shape" not in node.meta else f"{line}  # {shape_text(node)}{_einsum(line, node)}"


def _einsum(line: str, node: fx.Node) -> str:
    """Which einsum a line is, where its product of matrices does not show it; a product in a line of its own says it
    there."""
    multiplies = any(sign in line for sign in PRODUCTS)
    while multiplies and not meta.equation(node) and called(node) in VIEWS and isinstance(node.args[0], fx.Node):
        node = node.args[0]
    return f", einsum {meta.equation(node)}" if meta.equation(node) else ""


def shape_text(node: fx.Node) -> str:
    return f"[{', '.join(node.meta['shape'])}]"

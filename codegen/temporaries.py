"""Names of what nobody named: after the tensor that it was made of, and what was done to it.

S_linear_6.flatten(0, 1) is called S_linear_6_rows, its square S_linear_6_squared; an einsum that ends at a parameter
makes the products of columns and operand, T_S_weight_6.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from hbpcompiler.codegen.naming import identifier
from hbpcompiler.codegen.places import PARAMETERS
from hbpcompiler.codegen.printer import Text, view_of
from hbpcompiler.compiler.program import meta
from hbpcompiler.compiler.program.nodes import called
from hbpcompiler.rules.shared.result_names import DECORATION, SUFFIX

LONGEST = 40
"""Signs of a name; where it would be longer, parts of the path in it are left out."""
DEEPEST = 2
"""Suffixes that a name may have before it starts again from the tensor that has a name of its own."""
PRODUCTS = "T"
NEGATIVE_PART = "negative_part"

SLOPES, TERM = ("d", "dd"), "term"
"""Prefixes of local derivatives, and what a factor or a term of one is."""
OF_SEVERAL = ("product", "quotient")
"""Suffixes that say nothing of what a tensor meets."""

LAYOUT = frozenset({"flat", "rows", "row", "col", "shaped", "shaped_col", "turned", "spread", "cast", "windows",
                    "entries"})
"""Suffixes that say how a tensor lies and not what it is: the next one takes their place."""
LONGER = {"unflatten": "flat", "reshape": "flat", "unsqueeze": "row"}
"""Methods whose result may have an axis more, and what the tensor without it is of it."""
AS_MADE = "strided"
"""Of what a kernel lays out in its own way, and is then copied."""
UPDATES = {"mul_", "div_", "add_", "sub_"}
"""Methods whose result keeps the name of the tensor that they write to."""
BACKWARD = re.compile(r"_backward(_data)?$")
"""Of torch's kernels: native_layer_norm_backward, _softmax_backward_data."""
NAME = re.compile(r"[A-Za-z_]\w*")
SLICE = re.compile(r"(?P<name>[A-Za-z_]\w*)\[[\w:, +]+\]")
"""Of a variable, for a loop's turn."""
ENTRY = re.compile(rf"""{PARAMETERS}\[(?:path \+ )?['"]\.?(?P<key>[\w.]+)['"]\]""")
"""Of a large program's parameters."""


@dataclass(frozen=True)
class Given:
    """What is known of a name that was given."""

    origin: str
    """The tensor with a name of its own behind it."""
    depth: int
    """Suffixes since then."""
    laid: str = ""
    """Where its last word says how the tensor lies, the name without it; else nothing."""
    describes: bool = False
    """Whether its last word says what the numbers are, as in x_squared."""


class Temporaries:
    """Remembers which names it gave, and after which tensors."""

    def __init__(self, texts: Mapping[fx.Node, Text], subject: Callable[[fx.Node], str] = meta.subject,
                 asked: Callable[[fx.Node], str] = meta.wish, hint: Callable[[fx.Node], str] = meta.hint) -> None:
        self.texts, self.subject, self.asked, self.hint = texts, subject, asked, hint
        self._given: dict[str, Given] = {}

    def wish(self, node: fx.Node) -> str:
        """What a node without a hint would like to be called."""
        if own := self.wished(node) or self.of_its_reader(node):
            return own
        if _is_product(node):
            return f"{PRODUCTS}_{self.subject(node)}"
        suffix = self._lying(node)
        if suffix in OF_SEVERAL and (slope := self._slope_of(node)):
            return f"{slope}_{TERM}"
        base = self._base(node.all_input_nodes[0] if suffix == NEGATIVE_PART else node)  # of -x, which that says itself
        return self._with(base, suffix) if base else suffix

    def _slope_of(self, node: fx.Node) -> str:
        """The local derivative that a value is a factor or a term of, and nothing else; "" for others."""
        while len(node.users) == 1:
            node = next(iter(node.users))
            if name := self.hint(node) or self.asked(node):
                return name if name.partition("_")[0] in SLOPES else ""
        return ""

    def _lying(self, node: fx.Node) -> str:
        """The suffix of a node; with an axis more of what was brought into another shape, both are said, for the tensor
        with an axis more alone may have a line, too."""
        suffix, read = _suffix(node), node.args[0] if node.args else None
        if suffix != "col" or not isinstance(read, fx.Node) or _suffix(read) != "shaped":
            return suffix
        name = self.texts[read][0] if read in self.texts else ""
        return f"shaped_{suffix}" if name.endswith("_shaped") or NAME.fullmatch(name) is None else suffix

    def _with(self, base: str, suffix: str) -> str:
        """A name with one suffix more; one that it ends in already gets the next number."""
        base = self._whole(base)
        if base.endswith(f"_{suffix}"):
            return base
        known = self._of(base)
        if suffix not in LAYOUT and (known.depth >= DEEPEST or len(f"{base}_{suffix}") > LONGEST):
            base = known.origin
        return fitting(f"{base}_{suffix}")

    def of_its_reader(self, node: fx.Node) -> str:
        """Where a value with a name of its own is but this one with an axis more, with one taken apart, or copied."""
        users = list(node.users)
        how = called(users[0]) if len(users) == 1 and self.hint(users[0]) else ""
        if how == "contiguous":
            return f"{self.hint(users[0])}_{AS_MADE}"
        before, after = meta.shape(node), meta.shape(users[0]) if users else None
        if how not in LONGER or before is None or after is None or len(after) <= len(before):
            return ""
        return f"{self.hint(users[0])}_{'rows' if how != 'unsqueeze' and users[0].args[1:2] == (0,) else LONGER[how]}"

    def wished(self, node: fx.Node) -> str:
        """What was wished for, with what it is of: a wish that ends in _ is of the node's subject, one that begins
        with _ of what it is made of."""
        wish = self.asked(node)
        if wish.startswith("_"):
            base = self._base(node)
            known = self._of(base)
            return fitting(f"{known.origin if known.describes else self._whole(base)}{wish}")
        return f"{wish}{self.subject(node)}" if wish.endswith("_") else wish

    def kept(self, node: fx.Node) -> str:
        """The name of a tensor that nobody wished to rename and that is changed in place; "" for all else, and for what
        its name would not be true of any more."""
        target = node.args[0] if node.op == "call_method" and node.target in UPDATES else None
        text = self.texts[target][0] if isinstance(target, fx.Node) and target in self.texts else ""
        keeps = NAME.fullmatch(text) and not meta.hint(node) and not self.asked(node) and not self._of(text).describes
        return text if keeps else ""

    def origin(self, name: str) -> str:
        """The tensor that has a name of its own behind a name that was given."""
        return self._of(name).origin

    def gave(self, node: fx.Node, name: str) -> None:
        """The node was named."""
        if _is_product(node):
            return
        base, wish = self._base(node), self.asked(node)
        if base:
            before, goes_on = self._of(base), name.startswith(base)
            lies = wish.removeprefix("_") in LAYOUT or (not wish and _suffix(node) in LAYOUT)
            self._given[name] = Given(before.origin, before.depth + 1 if goes_on else 1,
                                      self._whole(base) if lies else "",
                                      not lies and not wish.endswith("_") and (bool(wish) or goes_on))

    def _of(self, name: str) -> Given:
        """What is known of a name; one that was not given here is a tensor's own."""
        return self._given.get(name, Given(name, 0))

    def _whole(self, name: str) -> str:
        """The name without a last word that says how the tensor lies."""
        return self._of(name).laid or name

    def _base(self, node: fx.Node) -> str:
        """The name of the first tensor that the node reads, through what is written into its line."""
        for read in node.all_input_nodes:
            text = self.texts[read][0] if read in self.texts else ""
            if NAME.fullmatch(text):
                return text
            if (cut := SLICE.fullmatch(text)) is not None:
                return cut["name"]
            if (entry := ENTRY.fullmatch(text)) is not None:
                return fitting(identifier(entry["key"]))
            product = f"{PRODUCTS}_{self.subject(read)}" if _is_product(read) else ""
            if found := self.wished(read) or product or self._inside(read):
                return found
        return ""

    def _inside(self, node: fx.Node) -> str:
        """What a node would be called that is written into a line; but for how it lies, which is said last."""
        base, suffix = self._base(node), _suffix(node)
        if not base or suffix in LAYOUT:
            return base
        found = self._with(base, suffix)
        before = self._of(base)
        self._given.setdefault(found, Given(before.origin, before.depth + 1, describes=True))
        return found


def _is_product(node: fx.Node) -> bool:
    return node.target is torch.einsum and bool(meta.subject(node)) and len(node.all_input_nodes) > 1


def _suffix(node: fx.Node) -> str:
    method: Any = called(node)
    if node.target is getattr:
        method = node.args[1]
    if method == "reshape":
        method = view_of(node).partition("(")[0] or method
    method = DECORATION.sub("", str(method).strip("_"))
    if BACKWARD.search(method):
        return "back"
    if method == "flatten" and node.args[1:2] == (0,):
        return "rows"
    if method == "clamp" and node.kwargs == {"min": 0}:
        return NEGATIVE_PART if _is_negated(node.args[0]) else "positive_part"
    if method == "getitem" and isinstance(node.args[1], str):
        return identifier(node.args[1]).strip("_")
    if method == "sub" and node.args[0] == 1:
        return "complement"
    if SUFFIX.get(method) == "scaled" and _meets_its_like(node):
        return "product" if method == "mul" else "quotient"
    return SUFFIX.get(method, identifier(method).strip("_"))


def _meets_its_like(node: fx.Node) -> bool:
    """Whether both operands are tensors of one shape: neither is but a scale."""
    shapes = [meta.shape(operand) for operand in node.args[:2] if isinstance(operand, fx.Node)]
    return len(shapes) == 2 and shapes[0] == shapes[1] is not None


def _is_negated(item: Any) -> bool:
    return isinstance(item, fx.Node) and called(item) == "neg"


def fitting(name: str) -> str:
    """The name without as many words behind its first as it takes."""
    first, *words = name.split("_")
    while len("_".join([first, *words])) > LONGEST and len(words) > 1:
        words = words[1:]
    return "_".join([first, *words])

"""What a program's node says of itself: typed access to `fx.Node.meta`, whose keys stand here alone.

Every node has a block, the heading that it is printed under, and a step, the number of the plan's step that wrote it
(None outside the backward pass). It may ask for a name. Once shapes are known (`annotate`), what makes a tensor has its
shape and dtype, what makes several has their number, and all else is marked as no tensor.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import fx

from hbpcompiler.arguments import Sizes
from hbpcompiler.compiler.program.lengths import Shape


@dataclass(frozen=True)
class Block:
    """A heading of the generated file."""

    title: str
    part: str
    """"forward", "backward" or "results"."""
    formula: str = ""
    """What is computed under it."""
    in_loops: str = ""
    """What is computed under it in loops that go through several blocks."""


class Role(IntEnum):
    """What a node is for, where that is more than its value.

    The first four are a loop body's placeholders, in the order in which the loop passes them.
    """

    TOTAL = 0
    """It grows from chunk to chunk."""
    ROWS = 1
    """This chunk's rows of a tensor that the loop fills."""
    CUT = 2
    """This chunk's part of a tensor."""
    WHOLE = 3
    """A tensor from outside, the same in every turn."""
    BATCH_SIZE = 4
    """The number of samples."""
    OVERWRITES = 5
    """It writes over a value that nobody needs any more (what rules and routes write in place, they mean to)."""
    KEPT = 6
    """A loop body's placeholder: 0.0 in the first turn, 1.0 later."""


class Mark(IntEnum):
    """What the backward pass says of a cast that it writes."""

    BEGINS = 0
    """Here a tensor becomes columns of curvature."""
    ENDS = 1
    """Here what was made of them takes the model's dtype again."""


# -- reading ---------------------------------------------------------------------------------------------------------


def block(node: fx.Node) -> Block | None:
    """The heading that it stands under."""
    found: Block | None = node.meta.get("block")
    return found


def step(node: fx.Node) -> int | None:
    """The step of the plan that wrote it."""
    found: int | None = node.meta.get("step")
    return found


def hint(node: fx.Node) -> str:
    """The name that it asks for, or nothing."""
    return node.meta.get("hint") or ""


def wish(node: fx.Node) -> str:
    """What it is called if it gets a line of its own, which it does not ask for; or nothing. A wish that ends in _ is
    of the node's subject, one that begins with _ of what it is made of."""
    return node.meta.get("wish") or ""


def result(node: fx.Node) -> str:
    """The name of the result that it is, beside its own; or nothing."""
    return node.meta.get("result") or ""


def equation(node: fx.Node) -> str:
    """The einsum that a product of matrices is, where its operands do not show it; or nothing."""
    return node.meta.get("equation") or ""


def subject(node: fx.Node) -> str:
    """What it is a part of: "S_weight_0" where columns S end at that parameter; or nothing."""
    return node.meta.get("subject") or ""


def letters(node: fx.Node) -> str:
    """Of a Gram matrix: the letters of what it is made of, "nkop"; else nothing."""
    return node.meta.get("letters") or ""


def role(node: fx.Node) -> Role | None:
    """What it is for."""
    found: Role | None = node.meta.get("role")
    return found


def mark(node: fx.Node) -> Mark | None:
    """Whether columns of curvature begin or end in this cast."""
    found: Mark | None = node.meta.get("curvature")
    return found


def shape(node: fx.Node) -> Shape | None:
    """Its shape; None if it is not known, or the node makes no tensor."""
    found: Shape | None = node.meta.get("shape")
    return found


def dtype(node: fx.Node) -> torch.dtype | None:
    """Its dtype; None as for `shape`."""
    found: torch.dtype | None = node.meta.get("dtype")
    return found


def results(node: fx.Node) -> int | None:
    """How many results a call has that has several."""
    found: int | None = node.meta.get("results")
    return found


def owns_memory(node: fx.Node) -> bool:
    """Whether its result certainly lies in memory of its own, one place for each number."""
    return bool(node.meta.get("own memory"))


def annotation(node: fx.Node) -> str:
    """How the generated file types it where it is an argument."""
    return node.meta.get("annotation") or ("int" if shape(node) is None else "Tensor")


def annotate_as(node: fx.Node, annotation: str) -> None:
    node.meta["annotation"] = annotation


def sizes(node: fx.Node) -> Sizes:
    """What the program asks of a call argument that is a dict of tensors."""
    found: Sizes = node.meta.get("sizes") or {}
    return found


def argument(node: fx.Node) -> str:
    """The name of the call argument (see `arguments`) that a placeholder stands for; or nothing."""
    return node.meta.get("argument") or ""


def is_known(node: fx.Node) -> bool:
    """Whether it is said what the node makes: a tensor of a shape and dtype, several results, or no tensor."""
    return ("shape" in node.meta and "dtype" in node.meta) or "results" in node.meta or "no tensor" in node.meta


def is_no_tensor(node: fx.Node) -> bool:
    """Whether it is said that the node makes a number, a shape or the like."""
    return "no tensor" in node.meta


def is_placed(node: fx.Node) -> bool:
    """Whether it is said where the node stands."""
    return "block" in node.meta and "step" in node.meta


def alike(node: fx.Node, other: fx.Node) -> bool:
    """Whether two nodes have one shape and one dtype."""
    return shape(node) == shape(other) and dtype(node) == dtype(other)


# -- writing ---------------------------------------------------------------------------------------------------------


def place(made: fx.Node, like: fx.Node) -> fx.Node:
    """`made` stands where `like` stands: same heading, same step."""
    made.meta["block"], made.meta["step"] = block(like), step(like)
    return made


def copy(made: fx.Node, node: fx.Node) -> fx.Node:
    """`made` says all that `node` says, but asks for no name."""
    made.meta = {key: value for key, value in node.meta.items() if key not in ("hint", "result")}
    return made


def move(made: fx.Node, node: fx.Node) -> fx.Node:
    """`made` says all that `node` says, and takes its name; the node asks for none from here on."""
    made.meta = dict(node.meta)
    node.meta.pop("hint", None)
    node.meta.pop("result", None)
    return made


def ask_for(node: fx.Node, name: str) -> None:
    """Ask for a name in the generated file; the first wish counts."""
    if name and not hint(node):
        node.meta["hint"] = name


def set_wish(node: fx.Node, name: str) -> None:
    """What it is called if it gets a line of its own."""
    node.meta["wish"] = name


def rename(node: fx.Node, name: str) -> None:
    """Ask for this name whatever was asked for before."""
    node.meta["hint"] = name


def set_result(node: fx.Node, name: str) -> None:
    """Say which result it is."""
    if name:
        node.meta["result"] = name


def set_subject(node: fx.Node, name: str) -> None:
    """Say what it is a part of."""
    if name:
        node.meta["subject"] = name


def set_equation(node: fx.Node, einsum: str) -> None:
    """Say of a product of matrices whose axes were moved which einsum it is."""
    node.meta["equation"] = einsum


def set_letters(node: fx.Node, found: str) -> None:
    """Say of a Gram matrix what it is made of."""
    node.meta["letters"] = found


def set_argument(node: fx.Node, name: str, annotated: str, sizes: Sizes | None = None) -> None:
    """Say that a placeholder stands for a call argument of this type, and what the program asks of a dict."""
    node.meta["argument"], node.meta["annotation"] = name, annotated
    node.meta["sizes"] = dict(sizes or {})


def set_annotation(node: fx.Node, like: fx.Node) -> None:
    """The type that another node has, where it is not to be seen."""
    if "annotation" in like.meta:
        node.meta["annotation"] = like.meta["annotation"]


def play(node: fx.Node, part: Role) -> None:
    """Say what it is for."""
    node.meta["role"] = part


def set_mark(node: fx.Node, found: Mark) -> None:
    """Say that columns of curvature begin or end here."""
    node.meta["curvature"] = found


def set_tensor(node: fx.Node, lengths: Shape, kind: torch.dtype | None) -> fx.Node:
    """Say that it makes a tensor."""
    node.meta["shape"], node.meta["dtype"] = lengths, kind
    return node


def set_own_memory(node: fx.Node, own: bool) -> fx.Node:
    """Say whether its result lies in memory of its own."""
    node.meta["own memory"] = own
    return node


def set_results(node: fx.Node, number: int) -> None:
    """Say that it makes several things, tensors among them."""
    node.meta["results"] = number


def set_no_tensor(node: fx.Node) -> None:
    """Say that it makes a number, a shape or a dtype."""
    node.meta["no tensor"] = True

"""What routes see: a site (letters, sizes, form), its tensors as proxies, and the pieces that several routes share."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import sympy
import torch

from hbpcompiler.compiler.cost.figures import UNLIMITED, Cost, Resources
from hbpcompiler.compiler.program.writer import Writer
from hbpcompiler.compiler.routes.rows import Rows
from hbpcompiler.compiler.trace.graph import N
from hbpcompiler.quantities import CROSS, DIAGONAL, DOT, GRAM, NEGATIVE, POSITIVE
from hbpcompiler.rule import Contraction, Op
from hbpcompiler.rule.contraction import letters_of
from hbpcompiler.rule.idioms import spread_by_index

COLUMNS, DIAGONAL_FORM, MATRIX, NOTHING = "columns", "diagonal", "matrix", "nothing"
"""Forms in which a stream arrives: columns [N, K, *z], a diagonal [N, *z], a matrix [h, h] for all samples."""

SQUARES = frozenset({DIAGONAL, POSITIVE, NEGATIVE})
INNER = frozenset({DOT, GRAM, CROSS})
"""Inner products of columns over a parameter's entries."""


@dataclass(frozen=True)
class Site:
    """A stream arriving at one use of a parameter: letters, their lengths, the stream's form. No tensors."""

    equation: str
    sizes: tuple[tuple[str, int], ...]
    form: str
    columns: int
    signed: bool
    itemsize: int
    native_sum: bool
    resources: Resources = UNLIMITED
    native_columns: bool = False
    """whether torch's kernel is as fast for all columns of one sample (see `closings`)."""
    formed: bool = False
    """whether the operand has to be made (patches of an image), and is not a tensor that is there already."""
    apart: bool = True
    """whether every entry of the output is but one entry of the contraction's columns: a diagonal stays one."""
    samples: int | None = None
    """the number of samples, where the site is inside a chunk loop; None for a whole batch of any size."""
    rows: Rows | None = None
    """what the operand's windows are made of, where they slide along an axis."""
    indexed: bool = False
    """whether the rule says where the operand's rows, which are unit vectors, have their ones."""
    own_product: bool = False
    """whether the rule has a product of its own, of one input channel and one output channel at a time."""
    pieces: int = 1
    """how many samples of this site a sample of the batch makes: neighbourhoods (see `local`)."""

    @property
    def letters(self) -> tuple[str, str, str]:
        """Of the columns, of the operand ("" if there is none) and of the result."""
        return letters_of(self.equation)

    def without_kernels(self, **changes: Any) -> Site:
        """Another contraction at this site, which torch's own kernels do not know."""
        return replace(self, native_sum=False, native_columns=False, rows=None, indexed=False, own_product=False,
                       **changes)

    def size(self, letters: Iterable[str]) -> int:
        lengths = dict(self.sizes)
        return math.prod(lengths[letter] for letter in letters if letter not in "nk")

    @property
    def theta(self) -> str:
        """The letters of the parameter itself."""
        return self.letters[2].replace("n", "").replace("k", "")

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.size(letter) for letter in self.theta)

    @property
    def has_operand(self) -> bool:
        return bool(self.letters[1])

    @property
    def has_positions(self) -> bool:
        return "p" in self.letters[0]

    @property
    def own(self) -> str:
        """Letters of the parameter that the columns have, in their order: `shared` and `outer` ones."""
        return "".join(letter for letter in self.letters[0] if letter in self.theta)

    @property
    def shared(self) -> str:
        """Letters of the parameter that columns and operand have: groups."""
        left, right, _ = self.letters
        return "".join(letter for letter in self.theta if letter in left and letter in right)

    @property
    def outer(self) -> str:
        """Letters of the parameter that only the columns have: output features."""
        return "".join(letter for letter in self.theta if letter not in self.letters[1])

    @property
    def features(self) -> str:
        """Letters of the parameter that only the operand has: input features."""
        return "".join(letter for letter in self.theta if letter not in self.letters[0])

    @property
    def inputs_first(self) -> bool:
        """Whether a matrix is stored as [in, out], as for x @ w, and not as a linear layer's [out, in]."""
        return self.theta == self.features + self.outer != self.outer + self.features

    @property
    def row(self) -> int:
        """The length of the parameter's last axis, as the einsum makes it."""
        return self.size(self.theta[-1:])

    @property
    def product(self) -> int:
        """Multiply-adds of the einsum for one sample and one column."""
        return self.size(set(self.letters[0] + self.letters[1]))


@dataclass(frozen=True)
class Use:
    """The tensors of a site, as proxies: the operation, its contraction, the stream and its signs."""

    writer: Writer
    op: Op
    contraction: Contraction
    stream: Any
    signs: Any
    batch: Any
    """N."""
    slot: str = ""
    """The argument that the parameter is."""
    by_pixels: bool = False
    """Whether columns of images lie pixel by pixel in memory."""
    other: Any = None
    """The gradient's columns, which these take inner products with."""
    totals: Mapping[str, Any] = field(default_factory=dict)
    """By closing, the running tensor that it is added to in place."""
    directions: Any = None
    """[F, *theta], which columns are projected onto."""
    bases: tuple[Any, Any] = (None, None)
    """Q_A (None for a whole block) and Q_B, in which cotangents are seen, as columns."""
    total: Any = None
    """The sum of the columns over all samples, [*theta]."""
    edges: Any = None
    """Of the bins of histograms, if a call gives some."""
    rows: Any = None
    """[*theta]: the row of a histogram that each entry is counted in."""
    alone: Use | None = None
    """The operand as Kronecker factors A see it, where a closing of columns needs A as well."""


class Route:
    """One way to compute some closings."""

    name: str
    kinds: frozenset[str]
    reads_pixels: bool = False
    """whether columns of images may lie pixel by pixel in memory: it is as fast then."""
    limits: tuple[str, ...] = ()
    """the thresholds (see `Limits`) that its cost follows, or the length of its chunks."""

    def applies(self, site: Site) -> bool:
        raise NotImplementedError

    def serves(self, site: Site) -> bool:
        """Whether it gives the right numbers here: as `applies`, where that leaves nothing out for being slow."""
        return self.applies(site)

    def closes(self, site: Site) -> frozenset[str]:
        """The closings it can compute at this site."""
        return self.kinds

    def limits_at(self, site: Site) -> tuple[str, ...]:
        """Those of its limits that matter at this site."""
        return self.limits

    def cost(self, site: Site, kinds: frozenset[str]) -> Cost:
        raise NotImplementedError

    def write(self, site: Site, use: Use, kinds: frozenset[str]) -> Mapping[str, Any]:
        raise NotImplementedError


NEVER = Cost(sympy.oo)
"""The cost of what must not be chosen."""


# -- pieces that several routes share ------------------------------------------------------------------------------


def einsum(equation: str, *operands: Any) -> Any:
    return torch.einsum(equation, *operands)


def weights_of(site: Site, signs: Any, kind: str) -> Any:
    """Weight [n, k] of each squared column; None where all are one, 0 where there is nothing of that sign."""
    if not site.signed:
        return 0 if kind == NEGATIVE else None
    if kind == DIAGONAL:
        return signs
    return (signs > 0).to(signs.dtype) if kind == POSITIVE else (signs < 0).to(signs.dtype)


def square_sums(site: Site, squares: Any, letters: str, signs: Any, kinds: Iterable[str], keep: str) -> dict[str, Any]:
    """Signed sums of squared columns, down to the letters `keep`."""
    sums: dict[str, Any] = {}
    for kind in sorted(kinds):
        weights = weights_of(site, signs, kind)
        if isinstance(weights, int):
            continue  # nothing of that sign: the caller's zeros stay
        if weights is not None:
            sums[kind] = einsum(f"nk,{letters}->{keep}", weights, squares)
        else:
            sums[kind] = sum_out(squares, letters, keep)
    return sums


LONG_ROW = 64
"""Numbers: torch takes norms of such rows in one pass, without their squares in between; shorter ones take longer."""


def squared_norms(site: Site, product: Any, alone: bool = False) -> Any:
    """[n] of a product [n, k, *theta]: of matrices sums of rows, so that float32 sums stay exact; of one that nothing
    else reads (`alone`) squares, which are written over it, faster than norms while it is in cache."""
    by_rows = len(site.theta) > 1 and site.row >= LONG_ROW and not alone
    squares = product.norm(2, [-1]).square() if by_rows else product.square()
    return squares.flatten(1).sum(1)


def over_columns(signs: Any, letters: str) -> Any:
    """Signs or weights [n, k] as they multiply a tensor of these letters, which begin with n and k."""
    return signs.reshape(signs.shape[:2] + (1,) * (len(letters) - 2))


def columns_of(use: Use, op: Op | None = None, columns: Any = None) -> Any:
    return use.contraction.columns(op or use.op, use.stream if columns is None else columns)


def diagonal_of(use: Use) -> Any:
    """A diagonal as it meets the parameter, [n, ...]."""
    return use.contraction.columns(use.op, use.stream.unsqueeze(1)).squeeze(1)


def unit_columns(use: Use, signed: bool = False) -> Any:
    """A diagonal as columns [N, K, *out], one for each entry: its root, or its absolute value's."""
    shape = use.op.shape("output")
    entries = use.stream.reshape(-1, math.prod(shape))
    roots = torch.diag_embed(entries.abs().sqrt() if signed else entries.sqrt())
    return roots.reshape(-1, math.prod(shape), *shape)


def operand_of(use: Use, op: Op | None = None) -> Any:
    assert use.contraction.operand is not None
    return use.contraction.operand(op or use.op)


def product_of(site: Site, use: Use, op: Op | None = None, columns: Any = None) -> Any:
    """The einsum itself: [n, k, *theta]."""
    left, right, result = site.letters
    if site.own_product and use.contraction.product is not None:
        return use.contraction.product(op or use.op, use.stream if columns is None else columns)
    if not site.has_operand:
        return sum_out(columns_of(use, op, columns), left, result)
    if left.replace("k", "") == right:
        # Entry by entry, as scales meet what they scale: for einsum that is one small matrix product per entry.
        return sum_out(columns_of(use, op, columns) * operand_of(use, op).unsqueeze(1), left, result)
    if site.indexed and use.contraction.index is not None:
        index = use.contraction.index(op or use.op)
        return spread_by_index(columns_of(use, op, columns), index, site.size(site.features))
    return einsum(site.equation, columns_of(use, op, columns), operand_of(use, op))


def sum_out(tensor: Any, letters: str, kept: str) -> Any:
    """Sum over the axes whose letters are not kept; their order stays."""
    axes = tuple(axis for axis, letter in enumerate(letters) if letter not in kept)
    return tensor.sum(axes if len(axes) > 1 else axes[0]) if axes else tensor


def is_plain(site: Site) -> bool:
    """Whether one sample's einsum over positions is a product of two matrices (for [in, out] see `inputs_first`)."""
    return len(site.outer) == len(site.features) == 1 and not site.shared and site.has_positions


def single_product(site: Site, columns: Any, operand: Any, one: bool = False) -> Any:
    """The einsum for a chunk of one sample as one matrix product, which beats a batch of one; [1, k, *theta].

    `one`: of a single column, so that a parameter [in, out] is made as it lies in memory.
    """
    left, right, _ = site.letters
    if not is_plain(site):
        return einsum(site.equation, columns, operand)
    columns = columns if left == f"nk{site.outer}p" else columns.mT
    operand = operand.squeeze(0)
    operand = operand.t() if right == f"n{site.features}p" else operand
    rows = columns.flatten(0, 2)
    if one and site.inputs_first:
        return (operand.t() @ rows.t()).reshape(1, 1, *site.shape)
    product = (rows @ operand).reshape(1, -1, site.size(site.outer), site.size(site.features))
    return product.mT if site.inputs_first else product


SINGLE_CHANNEL = 2
"""Bytes for each multiply-add of a convolution of one channel by one: how slow it is beside others."""


def product_traffic(site: Site, columns: Any, kept: bool) -> Any:
    """As `traffic_of`, where the product is the rule's own if it has one: then no operand is formed."""
    if not site.own_product:
        return traffic_of(site, columns, kept)
    return traffic_of(replace(site, formed=False), columns, kept) + N * SINGLE_CHANNEL * columns * site.product


def traffic_of(site: Site, columns: Any, product: bool) -> Any:
    """Bytes: the columns and the operand read, what is made (the operand, the product) written and read again."""
    left, right, result = site.letters
    operand = (3 if site.formed else 1) * site.size(right)
    moved = columns * site.size(left) + operand + (3 * columns * site.size(result) if product else 0)
    return N * site.itemsize * moved

"""What routes see, a site (letters, sizes, form) and its tensors as proxies, and what a route is."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import sympy

from hbpcompiler.compiler.cost.figures import UNLIMITED, Cost, Resources
from hbpcompiler.compiler.program.writer import Writer
from hbpcompiler.compiler.routes.rows import Rows
from hbpcompiler.quantities import CROSS, DIAGONAL, DOT, GRAM, NEGATIVE, POSITIVE
from hbpcompiler.rule import Contraction, Op
from hbpcompiler.rule.contraction import letters_of

COLUMNS, DIAGONAL_FORM, MATRIX, NOTHING = "columns", "diagonal", "matrix", "nothing"
"""Forms in which a stream arrives: columns [N, K, *z], a diagonal [N, *z], a matrix [h, h] for all samples."""
TIED_ROWS = "tied rows"
"""Columns at two uses of a parameter that is looked up by an index at one and multiplied at the other: p numbers the
positions of the first, q those of the second."""

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

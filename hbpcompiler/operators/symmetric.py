"""What all symmetric matrices that are known by their products can do; multiples and sums of them are such, too."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from numbers import Real
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

from hbpcompiler.errors import InputError, InputTypeError
from hbpcompiler.operators import estimates, krylov
from hbpcompiler.operators.conjugate_gradients import solved
from hbpcompiler.operators.estimates import Density, Estimate
from hbpcompiler.operators.krylov import Eigenpairs
from hbpcompiler.operators.vectors import Columns, Space

if TYPE_CHECKING:
    from scipy.sparse.linalg import LinearOperator

DENSE = 10_000
"""Rows of a matrix that `to_dense` makes without being told to: 800 MB in double precision."""


class SymmetricOperator(ABC):
    """A symmetric matrix of shape [D, D] about a model's parameters.

    `A @ v` takes a dict {name: [*theta]}, a list of tensors in the parameters' order, a vector [D], or several vectors
    at once, a matrix [D, F] or a dict or list of [F, *theta], in the parameters' dtype and on their device. It returns
    what it was given.
    """

    __array_ufunc__ = None  # numbers of NumPy leave the multiplication to this class

    def __init__(self, space: Space) -> None:
        self._space = space
        self._starts: dict[str, Tensor] = {}

    @abstractmethod
    def _times(self, columns: Columns) -> Columns:
        """The products with F vectors, [F, *theta] each."""

    @abstractmethod
    def trace(self) -> Tensor:
        """The exact trace."""

    @abstractmethod
    def diagonal(self) -> dict[str, Tensor]:
        """The exact diagonal {name: [*theta]}."""

    @abstractmethod
    def generator(self, what: str) -> torch.Generator:
        """Of the operator's own draws."""

    # -- the matrix --------------------------------------------------------------------------------------------------

    @property
    def shape(self) -> tuple[int, int]:
        return self._space.size, self._space.size

    @property
    def dtype(self) -> torch.dtype:
        return self._space.dtype

    @property
    def device(self) -> torch.device:
        return self._space.device

    @property
    def parameters(self) -> Mapping[str, torch.Size]:
        """The shapes of the parameters that it is about, by name, in the order of flat vectors."""
        return dict(self._space.shapes)

    @property
    def T(self) -> Self:  # noqa: N802  # as tensors and arrays call it
        """The transpose: itself."""
        return self

    def adjoint(self) -> Self:
        """Itself."""
        return self

    def __matmul__(self, vectors: Any) -> Any:
        """The product with one vector or several, in the form that they have. Raises InputError if they do not fit."""
        given = self._space.vectors(vectors)
        return given.back(self._times(given.columns))

    def to_flat(self, vectors: Any) -> Tensor:
        """[D] of a dict or list of one vector, [D, F] of several."""
        given = self._space.vectors(vectors)
        flat = self._space.joined(given.columns)
        return flat.squeeze(1) if given.single else flat

    def to_dict(self, vectors: Tensor) -> dict[str, Tensor]:
        """{name: [*theta]} of a vector [D], {name: [F, *theta]} of a matrix [D, F]."""
        given = self._space.vectors(vectors)
        return self._space.named([column.squeeze(0) for column in given.columns] if given.single else given.columns)

    def to_dense(self, most: int = DENSE) -> Tensor:
        """[D, D], by D products. Raises InputError if D is larger than `most`."""
        size = self._space.size
        if size > most:
            raise InputError(f"the matrix has {size} rows, which is more than {most}; to_dense(most={size}) makes it "
                             "nevertheless")
        return self @ torch.eye(size, dtype=self.dtype, device=self.device)

    def to_scipy(self) -> LinearOperator:
        """For SciPy's solvers: takes and gives float64 arrays, and computes in the parameters' dtype. Needs SciPy."""
        return krylov.to_scipy(self)

    def solve(self, b: Any, *, tolerance: float | None = None, most_products: int | None = None) -> Any:
        """A^-1 b, in the form of b, by conjugate gradients (Hestenes & Stiefel 1952): for a positive definite A, such
        as `operator.damped(1e-2)` of a GGN.

        - `tolerance`: of |A x - b|, relative to |b|; 1e-9 in double precision, 1e-5 in others by default.
        - `most_products`: gives up then, for each vector; 2 D, and 1000 at least, by default.

        Raises InputError where A is not positive definite, NotConvergedError after `most_products`.
        """
        given = self._space.vectors(b)
        found = solved(self, self._space.joined(given.columns), tolerance, most_products)
        return given.back(self._space.split(found))

    # -- eigenvalues and estimates ---------------------------------------------------------------------------------

    def top(self, k: int = 1, which: str = "largest", *, tolerance: float | None = None,
            most_products: int | None = None) -> Eigenpairs:
        """The k largest eigenvalues and their vectors by Lanczos' method with restarts (ARPACK through SciPy).

        - `which`: "largest" and "smallest" go by the value with its sign, "magnitude" by the absolute value.
        - `tolerance`: of eigenvalues, relative; 1e-9 in double precision, 1e-5 in single precision by default.
        - `most_products`: gives up then; 20 D, and 2000 at least, by default. A matrix of up to 2000 rows is then
          decomposed, if D products were allowed: eigenvalues that are many times the same, as zeros of a GGN, too.

        Values [k], in that order; vectors {name: [k, *theta]} of length one, whose signs mean nothing. The next call
        begins with the last one's vectors, which saves products while parameters move little. Raises InputError for k
        outside 1..D, NotConvergedError after `most_products`.
        """
        return krylov.top(self, k, which, tolerance, most_products, self._starts)

    def estimate_trace(self, products: int = 60) -> Estimate:
        """Trace and standard error from so many products, by XTrace; for what has no exact `trace`."""
        return estimates.trace(self, products, self.generator("trace"))

    def estimate_diagonal(self, products: int = 60) -> Estimate:
        """Diagonal [D] and standard errors [D] from so many products with random signs; the errors fall slowly."""
        return estimates.diagonal(self, products, self.generator("diagonal"))

    def density(self, points: int = 200, *, steps: int = 40, vectors: int = 5, width: float | None = None) -> Density:
        """The density of eigenvalues by stochastic Lanczos quadrature: `vectors` runs of `steps` products each.

        `width`: standard deviation of the bell curve that stands for an eigenvalue; by default a hundredth of their
        range.
        """
        return estimates.density(self, points, steps, vectors, width, self.generator("density"))

    # -- multiples and sums ------------------------------------------------------------------------------------------

    def damped(self, damping: float) -> Combination:
        """A + damping times the identity."""
        return Combination(self._space, ((1.0, self),), _number(damping))

    def __mul__(self, factor: float) -> Combination:
        """A times a number."""
        return Combination(self._space, ((_number(factor), self),), 0.0)

    def __rmul__(self, factor: float) -> Combination:
        return self * factor

    def __truediv__(self, divisor: float) -> Combination:
        if not _number(divisor):
            raise InputError("an operator cannot be divided by zero")
        return self * (1 / _number(divisor))

    def __neg__(self) -> Combination:
        return self * -1.0

    def __add__(self, other: SymmetricOperator) -> Combination:
        """A + B, of the same parameters. Raises InputError if they are not."""
        if not isinstance(other, SymmetricOperator):
            raise InputTypeError(f"an operator is added to another one, not to {type(other).__name__}; "
                                 "operator.damped(number) adds a multiple of the identity")
        if (self._space.shapes, self.dtype, self.device) != (other._space.shapes, other.dtype, other.device):
            raise InputError("operators that are added must be about the same parameters, in one dtype and on one "
                             f"device: one has {self._words()}, the other {other._words()}")
        return Combination(self._space, ((1.0, self), (1.0, other)), 0.0)

    def __radd__(self, other: Any) -> SymmetricOperator:
        """0 + A, as `sum` begins."""
        if isinstance(other, int) and other == 0:
            return self
        return self + other

    def __pos__(self) -> Self:
        return self

    def __sub__(self, other: SymmetricOperator) -> Combination:
        return self + -other

    def _times_text(self, factor: float) -> str:
        return repr(self) if factor == 1 else f"{factor:g} * {self!r}"

    def _words(self) -> str:
        shapes = ", ".join(f"{name} {list(shape)}" for name, shape in self.parameters.items())
        return f"{shapes} in {self.dtype} on {self.device}"


class Combination(SymmetricOperator):
    """A sum of multiples of operators and of the identity; products, trace and diagonal are sums of theirs."""

    def __init__(self, space: Space, terms: tuple[tuple[float, SymmetricOperator], ...], damping: float) -> None:
        super().__init__(space)
        self._terms, self._damping = terms, damping

    def trace(self) -> Tensor:
        """The exact trace, where all terms have one."""
        identity = torch.tensor(self.shape[0] * self._damping, dtype=self.dtype, device=self.device)
        return sum((factor * term.trace() for factor, term in self._terms), identity)

    def diagonal(self) -> dict[str, Tensor]:
        """The exact diagonal {name: [*theta]}, where all terms have one."""
        found = {name: torch.full(shape, self._damping, dtype=self.dtype, device=self.device)
                 for name, shape in self.parameters.items()}
        for factor, term in self._terms:
            for name, values in term.diagonal().items():
                found[name].add_(values, alpha=factor)
        return found

    def generator(self, what: str) -> torch.Generator:
        """That of the first term."""
        return self._terms[0][1].generator(what)

    def _times(self, columns: Columns) -> Columns:
        total = [self._damping * column for column in columns]
        for factor, term in self._terms:
            for sum_, part in zip(total, term._times(columns), strict=True):
                sum_.add_(part, alpha=factor)
        return total

    def __repr__(self) -> str:
        terms = [term._times_text(factor) for factor, term in self._terms]
        return " + ".join([*terms, *([f"{self._damping:g} * identity"] if self._damping else [])])

    def _times_text(self, factor: float) -> str:
        return f"({self!r})" if factor == 1 else f"{factor:g} * ({self!r})"


def _number(given: Any) -> float:
    """Raises InputTypeError for what is no number, InputError for one that is not finite."""
    scalar = isinstance(given, Tensor) and given.dim() == 0
    if isinstance(given, bool) or not (scalar or isinstance(given, Real)):
        raise InputTypeError(f"an operator is multiplied with, damped and divided by a number, not {given!r}; products "
                             "with vectors are written operator @ vectors")
    try:
        found = float(given)
    except OverflowError:
        found = math.inf
    if not math.isfinite(found):
        raise InputError(f"an operator is multiplied with, damped and divided by a finite number, not {given!r}")
    return found

"""Routes: the ways to close a parameter's einsum, each with its cost; the planner takes the cheapest cover.

A route is a plain torch function over the letters of a contraction ("nkpo,npi->nkoi"), traced like a rule. It knows
neither operations nor quantities: it sees letters, sizes and which closings are asked for (see `quantities`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import sympy
import torch

from hbpcompiler.cost import Cost, chunk_length
from hbpcompiler.graph import N
from hbpcompiler.quantities import DIAGONAL, EACH, FACTOR, INPUT_FACTOR, NEGATIVE, NORM, POSITIVE, SUM
from hbpcompiler.rule import Contraction, Op
from hbpcompiler.writer import Part, Writer

COLUMNS, DIAGONAL_FORM, MATRIX, NOTHING = "columns", "diagonal", "matrix", "nothing"
"""Forms in which a stream arrives: columns [N, K, *z], a diagonal [N, *z], a matrix [h, h] for all samples."""

SQUARES = frozenset({DIAGONAL, POSITIVE, NEGATIVE})


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
    memory_budget: int | None = None

    @property
    def letters(self) -> tuple[str, str, str]:
        left, result = self.equation.split("->")
        first, _, second = left.partition(",")
        return first, second, result

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
    def features(self) -> str:
        """Letters of the parameter that only the operand has: input features."""
        return "".join(letter for letter in self.theta if letter not in self.letters[0])

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


class Route:
    """One way to compute some closings."""

    name: str
    kinds: frozenset[str]

    def applies(self, site: Site) -> bool:
        raise NotImplementedError

    def cost(self, site: Site, kinds: frozenset[str]) -> Cost:
        raise NotImplementedError

    def write(self, site: Site, use: Use, kinds: frozenset[str]) -> Mapping[str, Any]:
        raise NotImplementedError


NEVER = Cost(sympy.oo)
"""The cost of what must not be chosen."""


# -- pieces that several routes share ------------------------------------------------------------------------------


def _einsum(equation: str, *operands: Any) -> Any:
    return torch.einsum(equation, *operands)


def _weights(site: Site, signs: Any, kind: str) -> Any:
    """Weight [n, k] of each squared column; None where all are one, 0 where there is nothing of that sign."""
    if not site.signed:
        return 0 if kind == NEGATIVE else None
    if kind == DIAGONAL:
        return signs
    return (signs > 0).to(signs.dtype) if kind == POSITIVE else (signs < 0).to(signs.dtype)


def _square_sums(site: Site, squares: Any, letters: str, signs: Any, kinds: Iterable[str], keep: str) -> dict[str, Any]:
    """Signed sums of squared columns, down to the letters `keep`."""
    sums: dict[str, Any] = {}
    for kind in sorted(kinds):
        weights = _weights(site, signs, kind)
        if isinstance(weights, int):
            continue  # nothing of that sign: the caller's zeros stay
        if weights is not None:
            sums[kind] = _einsum(f"nk,{letters}->{keep}", weights, squares)
        else:
            sums[kind] = _sum_out(squares, letters, keep)
    return sums


def _columns(use: Use, op: Op | None = None, columns: Any = None) -> Any:
    return use.contraction.columns(op or use.op, use.stream if columns is None else columns)


def _operand(use: Use, op: Op | None = None) -> Any:
    assert use.contraction.operand is not None
    return use.contraction.operand(op or use.op)


def _product(site: Site, use: Use, op: Op | None = None, columns: Any = None) -> Any:
    """The einsum itself: [n, k, *theta]."""
    left, _, result = site.letters
    if not site.has_operand:
        return _sum_out(_columns(use, op, columns), left, result)
    return _einsum(site.equation, _columns(use, op, columns), _operand(use, op))


def _sum_out(tensor: Any, letters: str, kept: str) -> Any:
    """Sum over the axes whose letters are not kept; their order stays."""
    axes = tuple(axis for axis, letter in enumerate(letters) if letter not in kept)
    return tensor.sum(axes if len(axes) > 1 else axes[0]) if axes else tensor


def _single_product(site: Site, columns: Any, operand: Any) -> Any:
    """The einsum for a chunk of one sample as one matrix product, which beats a batch of one; [1, k, *theta]."""
    left, right, _ = site.letters
    own = site.theta.replace(site.features, "")
    if not site.features or len(own) != 1 or len(site.features) != 1 or any(letter in right for letter in own):
        return _einsum(site.equation, columns, operand)
    columns = columns if left == f"nk{own}p" else columns.mT
    operand = operand.squeeze(0)
    operand = operand.t() if right == f"n{site.features}p" else operand
    return (columns.flatten(0, 2) @ operand).reshape(1, -1, site.size(own), site.size(site.features))


def _traffic(site: Site, columns: Any, product: bool) -> Any:
    """Bytes: the columns and the operand read, the product written and read again."""
    left, right, result = site.letters
    moved = columns * site.size(left) + site.size(right) + (3 * columns * site.size(result) if product else 0)
    return N * site.itemsize * moved


# -- routes over columns -------------------------------------------------------------------------------------------


class NativeSum(Route):
    """torch's own kernel for the summed gradient, where the rule names one."""

    name = "native kernel"
    kinds = frozenset({SUM})

    def applies(self, site: Site) -> bool:
        return site.form == COLUMNS and site.native_sum and site.columns == 1

    def cost(self, site: Site, kinds: frozenset[str]) -> Cost:
        return Cost(N * site.product, N * site.itemsize * site.size(site.letters[0]))

    def write(self, site: Site, use: Use, kinds: frozenset[str]) -> Mapping[str, Any]:
        assert use.contraction.summed is not None
        return {SUM: use.contraction.summed(use.op, use.stream.squeeze(1))}


class OneProduct(Route):
    """The sum over samples inside one einsum."""

    name = "one product"
    kinds = frozenset({SUM})

    def applies(self, site: Site) -> bool:
        return site.form == COLUMNS and site.columns == 1

    def cost(self, site: Site, kinds: frozenset[str]) -> Cost:
        return Cost(N * site.product, 2 * _traffic(site, 1, product=False))

    def write(self, site: Site, use: Use, kinds: frozenset[str]) -> Mapping[str, Any]:
        columns = _columns(use).squeeze(1)
        left, right, _ = site.letters
        if not site.has_operand:
            return {SUM: _sum_out(columns, left.replace("k", ""), site.theta)}
        return {SUM: _einsum(f"{left.replace('k', '')},{right}->{site.theta}", columns, _operand(use))}


class WholeProduct(Route):
    """The product for all samples and columns at once, everything read off it."""

    name = "batched product"
    kinds = frozenset({SUM, EACH, NORM, FACTOR, *SQUARES})

    def applies(self, site: Site) -> bool:
        return site.form == COLUMNS

    def cost(self, site: Site, kinds: frozenset[str]) -> Cost:
        small = EACH in kinds or site.size(site.theta) <= site.size(site.letters[0])
        if not small or (FACTOR in kinds and site.features):
            return NEVER  # memory would grow with N times the parameter's size
        size = N * site.columns * site.size(site.theta) * site.itemsize
        extra = N * site.columns * site.size(site.theta) ** 2 if FACTOR in kinds else 0
        return Cost(N * site.columns * site.product + extra, _traffic(site, site.columns, True), 2 * size, 2)

    def write(self, site: Site, use: Use, kinds: frozenset[str]) -> Mapping[str, Any]:
        product = _product(site, use)
        theta = site.theta
        results: dict[str, Any] = {}
        if SUM in kinds:
            results[SUM] = product.sum((0, 1))
        if EACH in kinds:
            results[EACH] = product.squeeze(1)
        if FACTOR in kinds:
            flat = product.flatten(2) if len(theta) > 1 else product
            weighted = flat if not site.signed else flat * use.signs.unsqueeze(2)
            results[FACTOR] = _einsum("nka,nkb->ab", weighted, flat)
        if kinds & SQUARES or NORM in kinds:
            squares = product.square()
            results |= _square_sums(site, squares, "nk" + theta, use.signs, kinds & SQUARES, theta)
            if NORM in kinds:
                results[NORM] = squares.flatten(1).sum(1)
        return results


class ChunkedProduct(Route):
    """Per-sample products in cache-sized chunks, squared and summed while they are in cache."""

    name = "chunked product"
    kinds = frozenset({SUM, NORM, *SQUARES})

    def applies(self, site: Site) -> bool:
        return site.form == COLUMNS and site.has_operand

    def _chunks(self, site: Site) -> tuple[int, int]:
        """Samples per chunk, columns per chunk."""
        each = site.size(site.theta) * site.itemsize
        samples = chunk_length(each * site.columns, site.memory_budget)
        return (samples, site.columns) if samples > 1 else (1, min(site.columns, chunk_length(each, site.memory_budget)))

    def cost(self, site: Site, kinds: frozenset[str]) -> Cost:
        samples, columns = self._chunks(site)
        inner = math.ceil(site.columns / columns)
        calls = (1 + N / samples) * (2 + 4 * inner)
        memory = samples * columns * site.size(site.theta) * site.itemsize
        # In cache, writing and reading the product costs a fraction of what it costs in memory.
        in_cache = N * site.itemsize * site.columns * site.size(site.theta) / 3
        traffic = _traffic(site, site.columns, False) + in_cache
        return Cost(N * site.columns * site.product, traffic, 2 * memory, calls)

    def write(self, site: Site, use: Use, kinds: frozenset[str]) -> Mapping[str, Any]:
        samples, columns = self._chunks(site)
        theta = site.theta
        totals = {kind: site.shape for kind in sorted(kinds) if kind != NORM}

        def add(part: Part, product: Any, into: Mapping[str, Any], single: bool) -> None:
            if single and not site.signed:
                # One sample, one column: square and add in a single pass over the cache.
                one = product.flatten(0, 1).squeeze(0)
                if SUM in kinds:
                    into[SUM].add_(one)
                for kind in sorted(kinds & {DIAGONAL, POSITIVE}):
                    into[kind].addcmul_(one, one)
                return
            if SUM in kinds:
                into[SUM].add_(product.sum((0, 1)))
            if kinds & SQUARES:
                sums = _square_sums(site, product.square(), "nk" + theta, part["signs"], kinds & SQUARES, theta)
                for kind, value in sums.items():
                    into[kind].add_(value)

        def body(part: Part) -> None:
            if columns == site.columns:
                if samples == 1 and site.has_positions:
                    product = _single_product(site, _columns(use, part.op, part["columns"]), _operand(use, part.op))
                else:
                    product = _product(site, use, part.op, part["columns"])
                add(part, product, part.totals, samples == 1 and site.columns == 1)
                if NORM in kinds:
                    part.rows[NORM].copy_(product.square().flatten(1).sum(1))
                return
            operand = _operand(use, part.op)
            left = _columns(use, part.op, part["columns"])

            def inner(piece: Part) -> None:
                product = _single_product(site, piece["columns"], piece.outer(operand))
                add(piece, product, {kind: piece.outer(total) for kind, total in part.totals.items()}, False)

            part.writer.loop(inner, op=None, sliced={"columns": left, "signs": part["signs"]}, chunk=columns,
                             totals={}, axis=1)

        rows: dict[str, tuple[int, ...]] = {NORM: ()} if NORM in kinds else {}
        return use.writer.loop(body, op=use.op, sliced={"columns": use.stream, "signs": use.signs}, chunk=samples,
                               totals=totals, rows=rows)


class ClosedForm(Route):
    """Without positions a squared outer product is the outer product of squares."""

    name = "closed form"
    kinds = frozenset({NORM, *SQUARES})

    def applies(self, site: Site) -> bool:
        return site.form == COLUMNS and site.has_operand and not site.has_positions

    def cost(self, site: Site, kinds: frozenset[str]) -> Cost:
        traffic = 2 * N * site.itemsize * (2 * site.columns * site.size(site.letters[0]) + 2 * site.size(site.letters[1]))
        return Cost(N * site.product if kinds & SQUARES else 0, traffic, traffic / 2, 4)

    def write(self, site: Site, use: Use, kinds: frozenset[str]) -> Mapping[str, Any]:
        left, right, _ = site.letters
        own = left.replace("n", "").replace("k", "")
        columns, operand = _columns(use).square(), _operand(use).square()
        results: dict[str, Any] = {}
        sums = _square_sums(site, columns, left, use.signs, kinds & SQUARES, "n" + own)
        for kind, value in sums.items():
            results[kind] = _einsum(f"n{own},{right}->{site.theta}", value, operand)
        if NORM in kinds:
            shared = "".join(letter for letter in own if letter in right)
            ours = _einsum(f"{left}->n{shared}", columns)
            theirs = _einsum(f"{right}->n{shared}", operand)
            results[NORM] = (ours * theirs).flatten(1).sum(1) if shared else ours * theirs
        return results


class GramDiagonal(Route):
    """Inner products of columns between positions first: no product per column."""

    name = "Gram over positions"
    kinds = SQUARES

    def applies(self, site: Site) -> bool:
        return site.form == COLUMNS and site.has_operand and site.has_positions

    def _chunk(self, site: Site) -> int:
        positions = site.size("p")
        each = (positions**2 + positions * site.size(site.features)) * site.size(self._own(site)) * site.itemsize
        return chunk_length(each, site.memory_budget)

    @staticmethod
    def _own(site: Site) -> str:
        return site.letters[0].replace("n", "").replace("k", "").replace("p", "")

    def cost(self, site: Site, kinds: frozenset[str]) -> Cost:
        positions, own, features = site.size("p"), site.size(self._own(site)), site.size(site.features)
        gram, product = positions**2 * own, positions * own * features
        chunk = self._chunk(site)
        adds = N * (site.columns * gram + positions**2 * own * features + product) * len(kinds)
        traffic = _traffic(site, site.columns, False) * 2 + N * site.itemsize * (gram + product) / 2 * len(kinds)
        return Cost(adds, traffic, chunk * (gram + product) * site.itemsize, 6 * (1 + N / chunk))

    def write(self, site: Site, use: Use, kinds: frozenset[str]) -> Mapping[str, Any]:
        left, right, _ = site.letters
        other_left, other_right = left.replace("p", "q"), right.replace("p", "q")
        own = self._own(site)
        between = f"n{own}pq"
        mixed = f"n{own}p{site.features}"

        def body(part: Part) -> None:
            columns, operand = _columns(use, part.op, part["columns"]), _operand(use, part.op)
            for kind in sorted(kinds):
                weights = _weights(site, part["signs"], kind)
                if isinstance(weights, int):
                    continue
                if weights is None:
                    gram = _einsum(f"{left},{other_left}->{between}", columns, columns)
                else:
                    scaled = columns * weights.reshape(weights.shape[:2] + (1,) * (len(left) - 2))
                    gram = _einsum(f"{left},{other_left}->{between}", scaled, columns)
                half = _einsum(f"{between},{other_right}->{mixed}", gram, operand)
                part.totals[kind].add_(_einsum(f"{mixed},{right}->{site.theta}", half, operand))

        return use.writer.loop(body, op=use.op, sliced={"columns": use.stream, "signs": use.signs},
                               chunk=self._chunk(site), totals={kind: site.shape for kind in sorted(kinds)})


class GramNorm(Route):
    """Squared norms from inner products between positions: no per-sample gradient."""

    name = "Gram over positions"
    kinds = frozenset({NORM})

    def applies(self, site: Site) -> bool:
        return site.form == COLUMNS and site.has_operand and site.has_positions and site.columns == 1

    def _chunk(self, site: Site) -> int:
        return chunk_length(2 * site.size("p") ** 2 * site.itemsize, site.memory_budget)

    def cost(self, site: Site, kinds: frozenset[str]) -> Cost:
        positions = site.size("p")
        left, right, _ = site.letters
        adds = N * positions * (site.size(left) + site.size(right))
        chunk = self._chunk(site)
        return Cost(adds, _traffic(site, 1, False) + N * site.itemsize * positions**2,
                    2 * chunk * positions**2 * site.itemsize, 5 * (1 + N / chunk))

    def write(self, site: Site, use: Use, kinds: frozenset[str]) -> Mapping[str, Any]:
        left, right, _ = site.letters
        own = left.replace("k", "")
        shared = "".join(letter for letter in own if letter in right and letter not in "np")

        def body(part: Part) -> None:
            columns, operand = _columns(use, part.op, part["columns"]).squeeze(1), _operand(use, part.op)
            ours = _einsum(f"{own},{own.replace('p', 'q')}->n{shared}pq", columns, columns)
            theirs = _einsum(f"{right},{right.replace('p', 'q')}->n{shared}pq", operand, operand)
            part.rows[NORM].copy_((ours * theirs).flatten(1).sum(1))

        return use.writer.loop(body, op=use.op, sliced={"columns": use.stream}, chunk=self._chunk(site), totals={},
                               rows={NORM: ()})


class ColumnFactor(Route):
    """B: one symmetric product of all columns, over samples, columns and positions."""

    name = "symmetric product"
    kinds = frozenset({FACTOR})

    def applies(self, site: Site) -> bool:
        return site.form == COLUMNS and bool(site.features)

    def cost(self, site: Site, kinds: frozenset[str]) -> Cost:
        left = site.letters[0]
        own = site.size(letter for letter in left if letter in site.theta)
        return Cost(N * site.columns * site.size(left) * own, 2 * _traffic(site, site.columns, False))

    def write(self, site: Site, use: Use, kinds: frozenset[str]) -> Mapping[str, Any]:
        left, right, _ = site.letters
        ours = "".join(letter for letter in site.theta if letter in left and letter not in right)
        shared = "".join(letter for letter in site.theta if letter in left and letter in right)
        each = site.size(left) * site.columns * site.itemsize

        def columns(op: Op, part: Part | None) -> tuple[Any, Any]:
            signs = use.signs if part is None else part["signs"]
            return _columns(use, op, use.stream if part is None else part["columns"]), signs

        sliced = {"columns": use.stream, "signs": use.signs}
        factor = _symmetric(site, use, left, shared, ours, columns, sliced, FACTOR, each)
        return {FACTOR: factor / site.size("p") if site.has_positions else factor}


class InputFactor(Route):
    """A: one symmetric product of the operand, over samples and positions."""

    name = "symmetric product"
    kinds = frozenset({INPUT_FACTOR})

    def applies(self, site: Site) -> bool:
        return site.form == NOTHING and bool(site.features)

    def cost(self, site: Site, kinds: frozenset[str]) -> Cost:
        right = site.size(site.letters[1])
        return Cost(N * right * site.size(site.features), 2 * N * right * site.itemsize)

    def write(self, site: Site, use: Use, kinds: frozenset[str]) -> Mapping[str, Any]:
        left, right, _ = site.letters
        shared = "".join(letter for letter in site.theta if letter in left and letter in right)
        each = site.size(right) * site.itemsize
        factor = _symmetric(site, use, right, shared, site.features, lambda op, part: (_operand(use, op), None),
                            {"input": use.stream}, INPUT_FACTOR, each)
        return {INPUT_FACTOR: factor}


def _symmetric(site: Site, use: Use, letters: str, shared: str, own: str,
               tensor: Callable[[Op, Part | None], tuple[Any, Any]], sliced: Mapping[str, Any], kind: str,
               each: int) -> Any:
    """sum of T T^T over all letters but `shared`, between the one letter `own` and its twin.

    With positions it runs in chunks, each one matrix product in place: the patches of a convolution never exist for
    the whole batch, and a small result is not summed from a batch of small ones.
    """

    def product(op: Op, part: Part | None) -> Any:
        right, signs = tensor(op, part)
        left = right if signs is None else right * signs.reshape(signs.shape[:2] + (1,) * (len(letters) - 2))
        return _einsum(f"{letters},{letters.replace(own, 'z')}->{shared}{own}z", left, right)

    if not site.has_positions:
        return product(use.op, None)

    def body(part: Part) -> None:
        assert part.op is not None
        if shared:
            part.totals[kind].add_(product(part.op, part))
            return
        columns, signs = tensor(part.op, part)
        axis = letters.index(own)
        order = (axis, *(other for other in range(len(letters)) if other != axis))
        right = columns.permute(order).flatten(1)
        if signs is not None:
            columns = columns * signs.reshape(signs.shape[:2] + (1,) * (len(letters) - 2))
        part.totals[kind].addmm_(columns.permute(order).flatten(1), right.t())

    shape = (*(site.size(letter) for letter in shared), site.size(own), site.size(own))
    chunk = chunk_length(each, site.memory_budget)
    return use.writer.loop(body, op=use.op, sliced=sliced, chunk=chunk, totals={kind: shape})[kind]


# -- routes over diagonals and matrices ------------------------------------------------------------------------------


class DiagonalForm(Route):
    """A diagonal over the output's coordinates: its columns hit one coordinate each, so squares need no column."""

    name = "closed form of a diagonal"
    kinds = frozenset({FACTOR, *SQUARES})

    def applies(self, site: Site) -> bool:
        return site.form == DIAGONAL_FORM

    def cost(self, site: Site, kinds: frozenset[str]) -> Cost:
        return Cost(N * site.product * len(kinds), 2 * _traffic(site, 1, False), 0, 2)

    def write(self, site: Site, use: Use, kinds: frozenset[str]) -> Mapping[str, Any]:
        left, right, _ = site.letters
        diagonal = _columns(use, columns=use.stream.unsqueeze(1)).squeeze(1)
        letters = left.replace("k", "")

        def close(diagonal: Any) -> Any:
            if site.has_operand:
                return _einsum(f"{letters},{right}->{site.theta}", diagonal, _operand(use).square())
            return _sum_out(diagonal, letters, site.theta)

        results: dict[str, Any] = {}
        if DIAGONAL in kinds:
            results[DIAGONAL] = close(diagonal)
        if POSITIVE in kinds:
            results[POSITIVE] = close(diagonal.clamp(min=0))
        if NEGATIVE in kinds:
            results[NEGATIVE] = close((-diagonal).clamp(min=0))
        if FACTOR in kinds:
            if site.features:
                own = "".join(letter for letter in site.theta if letter in left)
                factor = torch.diag_embed(_sum_out(diagonal, letters, own))
                results[FACTOR] = factor / site.size("p") if site.has_positions else factor
            else:
                results[FACTOR] = torch.diag_embed(close(diagonal).flatten())
        return results


class MatrixForm(Route):
    """The batch-averaged matrix of KFRA, [h, h] over the output's coordinates, seen from the parameter."""

    name = "batch-averaged matrix"
    kinds = frozenset({FACTOR})

    def applies(self, site: Site) -> bool:
        return site.form == MATRIX

    def cost(self, site: Site, kinds: frozenset[str]) -> Cost:
        return Cost(0, 2 * site.size(site.letters[0]) ** 2 * site.itemsize)

    def write(self, site: Site, use: Use, kinds: frozenset[str]) -> Mapping[str, Any]:
        left, right, _ = site.letters
        own = left.replace("n", "").replace("k", "")  # "po", say: the matrix gets these letters twice
        lengths = tuple(site.size(letter) for letter in own)
        shape = use.op.shape("output")
        # The columns' view on both sides: first the rows as columns of one sample, then, transposed, the other side.
        half = _columns(use, columns=use.stream.reshape(1, math.prod(shape), *shape))
        half = half.reshape(math.prod(shape), math.prod(lengths)).t().reshape(1, math.prod(lengths), *shape)
        both = _columns(use, columns=half).reshape(*lengths, *lengths)
        if site.features:
            shared = "".join(letter for letter in own if letter in right and letter != "p")
            ours = "".join(letter for letter in own if letter not in right)
            second = "".join(letter if letter == "p" or letter in shared else letter.upper() for letter in own)
            factor = _einsum(f"{own}{second}->{shared}{ours}{ours.upper()}", both)
            return {FACTOR: factor / site.size("p") if site.has_positions else factor}
        theta, count = site.theta, site.size(site.theta)
        if not site.has_operand:
            return {FACTOR: _einsum(f"{own}{own.upper()}->{theta}{theta.upper()}", both).reshape(count, count)}
        operand = _operand(use)
        second = "".join(letter if letter == "n" else letter.upper() for letter in right)
        factor = _einsum(f"{own}{own.upper()},{right},{second}->{theta}{theta.upper()}", both, operand, operand)
        return {FACTOR: factor.reshape(count, count) / use.batch}


ROUTES: tuple[Route, ...] = (
    NativeSum(), OneProduct(), ClosedForm(), GramNorm(), GramDiagonal(), ChunkedProduct(), WholeProduct(),
    ColumnFactor(), InputFactor(), DiagonalForm(), MatrixForm(),
)


@dataclass(frozen=True)
class Choice:
    """A route and the closings it was chosen for."""

    route: Route
    kinds: frozenset[str]
    cost: Cost


def choose(site: Site, kinds: frozenset[str]) -> tuple[Choice, ...]:
    """The cheapest set of routes that gives all closings: a product made for one closing serves the others."""
    applicable = [route for route in ROUTES if route.applies(site) and route.kinds & kinds]
    price: Callable[[Route, frozenset[str]], Choice] = lambda route, kinds: Choice(route, kinds, route.cost(site, kinds))
    best: tuple[float, tuple[Choice, ...]] | None = None
    for count in range(1, min(3, len(applicable)) + 1):
        for routes in itertools.combinations(applicable, count):
            left, choices = set(kinds), []
            for route in routes:
                taken = frozenset(left & route.kinds)
                left -= taken
                if taken:
                    choices.append(price(route, taken))
            if left or len(choices) < count:
                continue
            seconds = sum(choice.cost.seconds() for choice in choices)
            if best is None or seconds < best[0]:
                best = seconds, tuple(choices)
    assert best is not None, f"no route closes {sorted(kinds)} of {site}"
    return best[1]

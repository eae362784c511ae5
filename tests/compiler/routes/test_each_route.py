"""Every route at sites where it applies, on tensors, against the definition of its closings."""

import itertools

import pytest
import torch
from torch import fx

from hbpcompiler import quantities as q
from hbpcompiler.compiler.cost.figures import UNLIMITED, Resources
from hbpcompiler.compiler.program.grams import mirror_
from hbpcompiler.compiler.program.writer import Writer
from hbpcompiler.compiler.routes import ROUTES
from hbpcompiler.compiler.routes.bases import TurnedAfter, TurnedBefore
from hbpcompiler.compiler.routes.building_blocks import product_of
from hbpcompiler.compiler.routes.by_index import InnerByIndex, RowsByIndex
from hbpcompiler.compiler.routes.by_rows import SquaresByRows
from hbpcompiler.compiler.routes.chunks import ChunkedProduct
from hbpcompiler.compiler.routes.closed import DiagonalForm
from hbpcompiler.compiler.routes.directions import OperandFirst, ProductFirst, SumOfColumns
from hbpcompiler.compiler.routes.eigen import Eigenbasis
from hbpcompiler.compiler.routes.factors import ColumnFactor, ReducedFactor
from hbpcompiler.compiler.routes.gram import GramDiagonal, GramNorm
from hbpcompiler.compiler.routes.inner import PairsOfPositions, PartsOfProduct
from hbpcompiler.compiler.routes.kept import Kept
from hbpcompiler.compiler.routes.pairs import SquaresByPairs
from hbpcompiler.compiler.routes.products import ClosedForm, OneProduct, WholeProduct
from hbpcompiler.compiler.routes.site import COLUMNS, DIAGONAL_FORM, NOTHING, Site, Use
from hbpcompiler.limits import Limits
from hbpcompiler.rule import Contraction, Op

LENGTHS = {"n": 3, "k": 2, "p": 4, "o": 3, "i": 2, "g": 2}
PLAIN, POSITIONS, GROUPS, BIAS = "nko,ni->nkoi", "nkpo,npi->nkoi", "nkgop,ngpi->nkgoi", "nkop->nko"
INPUTS_FIRST = ("nkpo,npi->nkio", "nkop,nip->nkio")
"""Of matrices stored as [in, out]: x @ w, embeddings, transposed convolutions."""
TINY = Resources(limits=Limits(cache_bytes=1, one_by_one_bytes=0, recycled_bytes=1))
"""Chunks of one sample and one column."""


def site(equation, form, columns, signed, resources=UNLIMITED):
    left = equation.partition("->")[0]
    sizes = tuple(sorted((letter, LENGTHS[letter]) for letter in set(left) - {*"nk,"}))
    return Site(equation, sizes, form, columns, signed, 8, False, resources)


def tensors(own):
    """The stream as it arrives (columns, a diagonal or a matrix), the columns [n, k, ...] it stands for, their signs
    and the operand."""
    left, right, _ = own.letters
    shape = [LENGTHS[letter] for letter in left[2:]]
    operand = torch.randn(*(LENGTHS[letter] for letter in right), dtype=torch.float64) if right else None
    size = torch.Size(shape).numel()
    if own.form == COLUMNS:
        columns = torch.randn(3, own.columns, *shape, dtype=torch.float64)
        signs = torch.randn(3, own.columns, dtype=torch.float64).sign()
        return columns, columns, signs if own.signed else torch.ones_like(signs), operand
    diagonal = torch.rand(3, *shape, dtype=torch.float64)
    columns = torch.diag_embed(diagonal.flatten(1).sqrt()).reshape(3, size, *shape)
    return diagonal, columns, torch.ones(3, size, dtype=torch.float64), operand


def gradient_at(own):
    """The gradient's columns at a site, [n, 1, ...], always the same ones."""
    shape = [LENGTHS[letter] for letter in own.letters[0][2:]]
    return torch.linspace(-1, 2, 3 * torch.Size(shape).numel(), dtype=torch.float64).reshape(3, 1, *shape)


def directions_at(own):
    """Two vectors of the parameter's shape."""
    size = torch.Size(own.shape).numel()
    return torch.linspace(-2, 1, 2 * size, dtype=torch.float64).reshape(2, *own.shape)


def expected(own, columns, signs, operand):
    """The closings that say what they are of T[n, k, theta]."""
    left = own.letters[0]
    T = torch.einsum(own.equation, columns, operand) if operand is not None else torch.einsum(own.equation, columns)
    flat = T.flatten(2)
    weighted = T * signs.reshape(*signs.shape, *[1] * (T.dim() - 2))
    found = {q.DIAGONAL: (weighted * T).sum((0, 1)), q.BATCH_DIAGONAL: (weighted * T).sum(1), q.VECTORS: T,
             q.POSITIVE: (weighted * T).clamp(min=0).sum((0, 1)), q.NEGATIVE: (-weighted * T).clamp(min=0).sum((0, 1))}
    if columns.shape[1] == 1:
        found |= {q.SUM: T.sum((0, 1)), q.EACH: T[:, 0], q.NORM: flat.square().sum((1, 2)),
                  q.DOT: 7 + flat[:, 0] @ flat[:, 0].T}
    gradient = torch.einsum(own.equation, *[gradient_at(own), operand][: 1 + (operand is not None)]).flatten(2)
    rows = flat.flatten(0, 1)
    found |= {q.GRAM: 7 + rows @ rows.T, q.CROSS: 7 + rows @ gradient.flatten(0, 1).T,
              q.PROJECT: 7 + flat @ directions_at(own).flatten(1).T, q.COLUMN_SUM: T.sum(0)}
    if not own.features:
        found[q.FACTOR] = found[q.REDUCED_FACTOR] = torch.einsum("nk,nka,nkb->ab", signs, flat, flat)
    else:
        other, reduced = left.replace("o", "z"), left.replace("p", "")
        shared = "g" if "g" in left else ""
        positions = LENGTHS["p"] if "p" in left else 1
        factor = torch.einsum(f"nk,{left},{other}->{shared}oz", signs, columns, columns)
        summed = torch.einsum(f"{left}->{reduced}", columns)
        found[q.FACTOR] = factor / positions
        found[q.REDUCED_FACTOR] = torch.einsum(f"nk,{reduced},{reduced.replace('o', 'z')}->{shared}oz", signs, summed,
                                               summed)
    found[q.IN_BASES] = in_bases(own, T, weighted)
    return found


def bases_at(own):
    """Q_A (None without input features) and Q_B, one for each group; not orthogonal, which nothing needs."""
    sizes = [own.size(own.features), own.size(own.outer)] if own.features else [0, own.size(own.theta)]
    found = [torch.linspace(-1, 2, size**2, dtype=torch.float64).cos().reshape(size, size) for size in sizes]
    if own.shared and own.features:
        scales = torch.arange(1.0, own.size(own.shared) + 1, dtype=torch.float64).reshape(-1, 1, 1)
        found = [scales * each for each in found]
    return (found[0] if own.features else None), found[1]


def in_bases(own, T, weighted):
    """Sums of squares of Q_B^T T Q_A, outputs first."""
    inner, outer = bases_at(own)

    def seen(product):
        if inner is None:
            return product.flatten(2) @ outer
        shared, o, i = own.shared, own.outer, own.features
        return torch.einsum(f"nk{own.theta},{shared}{o}z,{shared}{i}y->nk{shared}zy", product, outer, inner)

    return (seen(weighted) * seen(T)).sum((0, 1))


SITES = [site(equation, form, columns, signed, resources)
         for equation in (PLAIN, POSITIONS, GROUPS, BIAS, *INPUTS_FIRST)
         for form, columns in ((COLUMNS, 1), (COLUMNS, 2), (DIAGONAL_FORM, 0)) for signed in (False, True)
         for resources in (UNLIMITED, TINY) if not (signed and (form != COLUMNS or columns == 1))]


def told(route, own):
    """The closings of this route that the definitions above say."""
    return route.closes(own) & DEFINED - (frozenset() if own.signed else {q.NEGATIVE})


def written(own, use_of, make):
    """What a route makes of tensors, by its name."""
    writer = Writer()
    given = {name: writer.placeholder(name) for name in ("stream", "signs", "operand", "other", "directions", "inner",
                                                         "outer", *RUNNING)}
    shape = tuple(LENGTHS[letter] for letter in own.letters[0][2:])
    op = Op(given, {}, {"output": shape, "operand": (1,)}, batched=frozenset({"output", "operand"}))
    contraction = Contraction(own.equation, operand=(lambda op: op.operand) if own.has_operand else None)
    use = Use(writer, op, contraction, given["stream"], given["signs"] if own.signed else None, 3,
              other=given["other"], directions=given["directions"],
              bases=(given["inner"] if own.features else None, given["outer"]),
              totals={kind: given[kind] for kind in RUNNING})
    made = {kind: part._asdict() if isinstance(part, tuple) else part for kind, part in make(use).items()}
    writer.graph.output(fx.node.map_aggregate(made, lambda item: item.node if isinstance(item, fx.Proxy) else item))
    rows = 3 * own.columns
    shapes = {q.DOT: (rows, rows), q.GRAM: (rows, rows), q.CROSS: (rows, 3),
              q.PROJECT: (3, own.columns, 2)}
    totals = [torch.full(shapes[kind], 7, dtype=torch.float64) for kind in RUNNING]
    return fx.GraphModule(torch.nn.Module(), writer.graph)(*use_of, gradient_at(own), directions_at(own),
                                                           *bases_at(own), *totals)


RUNNING = (q.DOT, q.GRAM, q.CROSS, q.PROJECT)
"""What routes add to."""


DEFINED = frozenset({q.DIAGONAL, q.BATCH_DIAGONAL, q.VECTORS, q.POSITIVE, q.NEGATIVE, q.SUM, q.EACH, q.NORM, q.FACTOR,
                     q.REDUCED_FACTOR, q.COLUMN_SUM, q.IN_BASES, *RUNNING})
CASES = [pytest.param(route, own, id=f"{type(route).__name__} {own.equation} {own.form} {own.columns} {own.signed} "
                                     f"{'tiny chunks' if own.resources is TINY else ''}".strip())
         for route, own in itertools.product(ROUTES, SITES) if route.applies(own) and told(route, own)]


@pytest.mark.parametrize(("route", "own"), CASES)
def test_a_route_gives_what_it_says(route, own):
    torch.manual_seed(0)
    stream, columns, signs, operand = tensors(own)
    wanted = expected(own, columns, signs, operand)
    kinds = told(route, own) & wanted.keys()
    found = written(own, (stream, signs, operand), lambda use: route.write(own, use, kinds))
    assert found.keys() == kinds != frozenset()
    for kind, value in found.items():
        value = mirror_(value) if kind in (q.DOT, q.GRAM) else value
        torch.testing.assert_close(value.reshape(wanted[kind].shape), wanted[kind])


def test_these_routes_are_met():
    assert {type(case.values[0]) for case in CASES} == {
        OneProduct, ClosedForm, GramNorm, GramDiagonal, SquaresByPairs, SquaresByRows, ChunkedProduct, WholeProduct,
        ColumnFactor, ReducedFactor, DiagonalForm, PairsOfPositions, PartsOfProduct, OperandFirst, ProductFirst,
        SumOfColumns, TurnedBefore, TurnedAfter}


def route_of(kind):
    return next(route for route in ROUTES if type(route) is kind)


def test_kept_columns_and_operand_make_the_block():
    torch.manual_seed(0)
    own = site(POSITIONS, COLUMNS, 2, True)
    stream, columns, signs, operand = tensors(own)
    kept = written(own, (stream, signs, operand), lambda use: route_of(Kept).write(own, use, {q.BLOCK}))[q.BLOCK]
    assert torch.equal(kept["columns"], columns)
    assert torch.equal(kept["signs"], signs)
    assert torch.equal(kept["operand"], operand)
    assert kept["diagonal"] is None


@pytest.mark.parametrize("equation", [PLAIN, POSITIONS, BIAS])
def test_squares_in_the_eigenvectors_of_the_factors(equation):
    torch.manual_seed(0)
    own = site(equation, COLUMNS, 2, False)
    stream, columns, signs, operand = tensors(own)
    found = written(own, (stream, signs, operand), lambda use: route_of(Eigenbasis).write(own, use, {q.EIGEN}))
    eigen, wanted = found[q.EIGEN], expected(own, columns, signs, operand)
    turned = eigen["B"].mT @ wanted[q.FACTOR] @ eigen["B"]
    torch.testing.assert_close(turned, torch.diag(turned.diagonal()))
    T = wanted[q.VECTORS]
    T = torch.einsum("oz,nko...->nkz...", eigen["B"], T)
    T = T if eigen["A"] is None else T @ eigen["A"]
    torch.testing.assert_close(eigen["eigenvalues"], T.square().sum((0, 1)))


@pytest.mark.parametrize("equation", [PLAIN, POSITIONS, GROUPS])
def test_factors_of_the_operand(equation):
    torch.manual_seed(0)
    own = site(equation, NOTHING, 0, False)
    _, _, _, operand = tensors(site(equation, COLUMNS, 1, False))
    right, shared = own.letters[1], "g" if "g" in equation else ""
    wanted = {q.INPUT_FACTOR: torch.einsum(f"{right},{right.replace('i', 'z')}->{shared}iz", operand, operand)}
    mean = torch.einsum(f"{right}->{right.replace('p', '')}", operand) / (LENGTHS["p"] if "p" in right else 1)
    letters = right.replace("p", "")
    wanted[q.REDUCED_INPUT_FACTOR] = torch.einsum(f"{letters},{letters.replace('i', 'z')}->{shared}iz", mean, mean)
    for route in filter(lambda route: route.applies(own), ROUTES):
        for kind in route.closes(own) & wanted.keys():
            found = written(own, (operand, None, operand), lambda use, route=route, kind=kind: route.write(
                own, use, frozenset({kind})))
            torch.testing.assert_close(found[kind], wanted[kind])


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("positions", [True, False])
def test_rows_by_index(signed, positions):
    """Of unit vectors as an operand, among them equal ones within a sample and rows of zeros."""
    index = torch.tensor([[1, 0, 1, 4], [2, 2, 2, 2], [-1, 3, 3, -1]])
    index = index if positions else index[:, 0]
    operand = torch.nn.functional.one_hot(index.clamp(min=0), 5).double() * (index >= 0).unsqueeze(-1)
    equation = "nkpd,npv->nkvd" if positions else "nkd,nv->nkvd"
    own = Site(equation, (("d", 3), ("v", 5), *([("p", 4)] if positions else [])), COLUMNS, 2, signed, 8, False,
               indexed=True)
    columns = torch.randn(3, 2, *([4] if positions else []), 3, dtype=torch.float64)
    signs = torch.tensor([[1.0, -1], [1, 1], [-1, 1]]).double() if signed else torch.ones(3, 2).double()
    T = torch.einsum(equation, columns, operand)
    weighted = T * signs.reshape(3, 2, 1, 1)
    wanted = {q.DIAGONAL: (weighted * T).sum((0, 1)), q.POSITIVE: (weighted * T).clamp(min=0).sum((0, 1)),
              q.NEGATIVE: (-weighted * T).clamp(min=0).sum((0, 1)), q.NORM: T.square().flatten(1).sum(1)}
    rows, gradient, directions = T.flatten(2), torch.randn_like(columns[:, :1]), torch.randn(2, 5, 3).double()
    flat = rows.flatten(0, 1)
    others = torch.einsum(equation, gradient, operand).flatten(2).flatten(0, 1)
    wanted |= {q.GRAM: 7 + flat @ flat.T, q.CROSS: 7 + flat @ others.T, q.PROJECT: 7 + rows @ directions.flatten(1).T}
    given = (columns, signs, index, gradient, directions, *(torch.full_like(wanted[kind], 7) for kind in RUNNING[1:]))
    for route in (RowsByIndex(), InnerByIndex(), OperandFirst()):
        kinds = route.kinds & wanted.keys() - (frozenset() if signed else {q.NEGATIVE})
        assert route.applies(own)
        assert route.cost(own, kinds).seconds(3) > 0
        found = by_index(route, own, kinds, given)
        for kind in kinds:
            value = mirror_(found[kind]) if kind == q.GRAM else found[kind]
            torch.testing.assert_close(value, wanted[kind])
        torch.testing.assert_close(found["each"], T)


def by_index(route, own, kinds, tensors):
    """What a route of an indexed site makes of tensors; the operand itself is not there."""
    writer = Writer()
    names = ("stream", "signs", "rows", "other", "directions", *RUNNING[1:])
    given = {name: writer.placeholder(name) for name in names}
    columns, index = tensors[0], tensors[2]
    op = Op(given, {}, {"output": columns.shape[2:], "rows": index.shape[1:]}, batched=frozenset({"output", "rows"}))
    contraction = Contraction(own.equation, operand=lambda op: pytest.fail("one-hot"), index=lambda op: op.rows)
    use = Use(writer, op, contraction, given["stream"], given["signs"] if own.signed else None, 3,
              other=given["other"], directions=given["directions"], totals=given)
    made = {kind: value.node for kind, value in route.write(own, use, kinds).items()}
    made["each"] = product_of(own, use).node
    writer.graph.output(made)
    return fx.GraphModule({}, writer.graph)(*tensors)

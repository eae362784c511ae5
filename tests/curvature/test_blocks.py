"""Every function of every kind of block, against dense linear algebra in float64."""

import itertools
from collections import namedtuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import hbpcompiler as hbp
from hbpcompiler.curvature import EigenKronecker, Kronecker
from hbpcompiler.curvature.place import rows
from hbpcompiler.curvature.symmetric import from_upper_triangle, upper_triangle

Factors = namedtuple("Factors", "A B")
Eigen = namedtuple("Eigen", "A B eigenvalues")


def close(found, expected, what, tolerance=1e-8):
    """Relative to the largest entry."""
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype), what
    if found.numel():
        error = ((found - expected).abs().max() / (1e-6 + expected.abs().max())).item()
        assert error < tolerance, f"{what}: relative error {error:.1e}"


def psd(size, groups=None, rank=None, dtype=torch.float64):
    """A random one; of full rank unless told otherwise."""
    shape = [size, size + 2 if rank is None else rank]
    root = torch.randn(*([] if groups is None else [groups]), *shape, dtype=torch.float64)
    return (root @ root.mT / size).to(dtype)


def orthogonal(size, groups=None):
    return torch.linalg.qr(torch.randn(*([] if groups is None else [groups]), size, size, dtype=torch.float64))[0]


def kron_in_order(A, B, layout):
    """[n, n] in the order of a parameter that is laid out so; groups are the blocks of a block diagonal."""
    pairs = zip(A, B, strict=True) if A.dim() == 3 else [(A, B)]
    return torch.block_diag(*[torch.kron(b, a) if layout == "out, in" else torch.kron(a, b) for a, b in pairs])


KINDS = ["kronecker", "groups", "eigen", "eigen groups", "dense", "bias", "diagonal", "spread"]


@st.composite
def curvatures(draw, rank=None):
    """Values, parameters, layouts and the dense matrix: some of each kind, in a random order."""
    torch.manual_seed(draw(st.integers(0, 1000)))
    sizes = st.integers(1, 4)
    values, shapes, layouts, dense = {}, {}, {}, []
    kinds = draw(st.permutations(KINDS))
    for name in kinds[: draw(st.integers(2, 8))]:
        o, i, groups = draw(sizes), draw(sizes), draw(sizes) if "groups" in name else None
        layout = draw(st.sampled_from(["out, in", "in, out"]))
        if name in ("kronecker", "groups", "eigen", "eigen groups"):
            first, rest = ((o, i) if layout == "out, in" else (i, o))
            shapes[name] = ((groups or 1) * first, rest) + ((1,) if draw(st.booleans()) else ())
            layouts[name] = layout
        if name in ("kronecker", "groups"):
            values[name] = Factors(psd(i, groups, rank), psd(o, groups, rank))
            dense.append(kron_in_order(*values[name], layout))
        elif name in ("eigen", "eigen groups"):
            values[name] = Eigen(orthogonal(i, groups), orthogonal(o, groups),
                                 0.1 + torch.rand(*([] if groups is None else [groups]), o, i, dtype=torch.float64))
            basis = kron_in_order(values[name].A, values[name].B, layout)
            order = values[name].eigenvalues if layout == "out, in" else values[name].eigenvalues.mT
            dense.append(basis @ order.flatten().diag() @ basis.T)
        elif name == "spread":
            shapes[name], values[name] = (o, i), Eigen(None, orthogonal(o * i), torch.rand(o * i).double() + 0.1)
            dense.append(values[name].B @ values[name].eigenvalues.diag() @ values[name].B.T)
        elif name == "dense":
            shapes[name], matrix = (o, i), psd(o * i)
            values[name] = matrix.reshape(o, i, o, i) if draw(st.booleans()) else matrix
            dense.append(matrix)
        elif name == "bias":
            shapes[name], values[name] = (o,), Factors(None, psd(o))
            dense.append(values[name].B)
        else:
            shapes[name] = draw(st.sampled_from([(), (o,), (o, i), (o, i, 2)]))
            values[name] = 0.1 + torch.rand(shapes[name], dtype=torch.float64)
            dense.append(values[name].flatten().diag())
    return values, shapes, layouts, torch.block_diag(*dense)


def flat(vectors):
    return torch.cat([part.flatten() for part in vectors.values()])


@given(curvatures(), st.integers(0, 1000))
def test_against_dense_linear_algebra(made, seed):
    values, shapes, layouts, D = made
    H = hbp.curvature(values, shapes, layouts=layouts)
    torch.manual_seed(seed)
    v = {name: torch.randn(shape, dtype=torch.float64) for name, shape in shapes.items()}
    eye, damped = torch.eye(len(D)).double(), D + 0.3 * torch.eye(len(D)).double()
    close(H.to_dense(), D, "dense")
    close(flat(H @ v), D @ flat(v), "product")
    close(flat(H.solve(v, 0.3)), torch.linalg.solve(damped, flat(v)), "solve")
    close(flat(H.solve(v)), torch.linalg.solve(D, flat(v)), "solve without damping")
    close(H.inverse(0.3).to_dense(), torch.linalg.inv(damped), "inverse")
    close(H.inverse().to_dense(), torch.linalg.inv(D), "inverse without damping")
    root = H.power(0.5).to_dense()
    close(root @ root, D, "root")
    root = H.power(-0.5, 0.3).to_dense()
    close(root @ root @ damped, eye, "inverse root")
    close(H.power(2, 0.3).power(0.5).to_dense(), damped, "powers of powers")
    close(H.power(0).to_dense(), eye, "power 0")
    close(H.trace(), D.trace(), "trace")
    close(H.logdet(0.3), torch.logdet(damped), "logdet")
    close(flat(H.diag()), D.diagonal(), "diagonal")
    close((2.5 * H).to_dense(), 2.5 * D, "scaled")
    close((H * 2.5).solve(flat(v), 0.3), torch.linalg.solve(2.5 * D + 0.3 * eye, flat(v)), "scaled, after eigh")
    again = hbp.Curvature.from_state_dict(H.state_dict())
    assert torch.equal(again.to_dense(), H.to_dense())
    assert again.names == H.names
    each = {name: float(number) for number, name in enumerate(shapes, 1)}
    spread = torch.cat([torch.full((v[name].numel(),), each[name]) for name in shapes]).double().diag()
    close(flat(H.solve(v, each)), torch.linalg.solve(D + spread, flat(v)), "a damping for each parameter")


@given(curvatures(), st.integers(0, 3))
def test_every_form_of_a_vector(made, count):
    values, shapes, layouts, D = made
    H = hbp.curvature(values, shapes, layouts=layouts)
    stack = {name: torch.randn(count, *shape, dtype=torch.float64) for name, shape in shapes.items()}
    columns = rows(stack).T
    right = D @ columns
    backwards = {name: stack[name] for name in reversed(list(stack))}
    found = H @ backwards
    assert list(found) == list(backwards)
    close(rows({name: found[name] for name in shapes}).T, right, "dict")
    found = H @ list(stack.values())
    assert isinstance(found, list)
    close(rows(dict(enumerate(found))).T, right, "list")
    close(H @ columns, right, "flat")
    close(H.solve(columns, 0.2), torch.linalg.solve(D + 0.2 * torch.eye(len(D)).double(), columns), "solve")
    if count:
        close(H @ columns[:, 0], right[:, 0], "one flat vector")
        close(flat(H @ {name: part[0] for name, part in stack.items()}), right[:, 0], "one dict")


@given(curvatures(), st.floats(0.01, 10))
def test_damping_shared_by_the_factors(made, damping):
    values, shapes, layouts, _ = made
    factors = {name: value for name, value in values.items() if not isinstance(value, Eigen)}
    if not factors:
        return
    shapes = {name: shapes[name] for name in factors}
    H = hbp.curvature(factors, shapes, layouts=layouts and {name: layouts[name] for name in layouts if name in factors})
    v = {name: torch.randn(shape, dtype=torch.float64) for name, shape in shapes.items()}
    dense, gamma = [], damping**0.5
    for name, value in factors.items():
        if isinstance(H[name], Kronecker):
            pairs = list(zip(value.A, value.B, strict=True)) if value.A.dim() == 3 else [value]
            both = []
            for A, B in pairs:
                pi = ((A.trace() / len(A)) / (B.trace() / len(B))).sqrt()
                both.append((A + pi * gamma * torch.eye(len(A)).double(), B + gamma / pi * torch.eye(len(B)).double()))
            dense.append(kron_in_order(*map(torch.stack, zip(*both, strict=True)), layouts[name]))
        else:
            one = hbp.curvature({name: value}, shapes).to_dense()
            dense.append(one + damping * torch.eye(len(one)).double())
    right = torch.block_diag(*dense)
    close(flat(H.solve(v, damping, split="pi")), torch.linalg.solve(right, flat(v)), "solve")
    close(H.logdet(damping, split="pi"), torch.logdet(right), "logdet")
    inverse = H.inverse(damping, split="pi")
    close(inverse.to_dense(), torch.linalg.inv(right), "inverse")
    assert {type(block) for block in inverse.blocks} == {type(block) for block in H.blocks}
    assert all(isinstance(block, EigenKronecker) for name, block in zip(H.names, H.inverse(damping).blocks, strict=True)
               if isinstance(H[name], Kronecker))


@pytest.mark.parametrize("split", ["exact", "pi"])
def test_zero_factors(split):
    zero = torch.zeros(3, 3, dtype=torch.float64)
    H = hbp.curvature({"a": Factors(zero, psd(2)), "b": Factors(psd(2), zero), "c": Factors(zero, zero)},
                      {"a": (2, 3), "b": (3, 2), "c": (3, 3)}, layouts={"c": "out, in"})
    v = torch.randn(21, dtype=torch.float64)
    found = H.solve(v, 0.5, split=split)
    assert found.isfinite().all()
    if split == "exact":
        close(found, v / 0.5, "nothing but damping")
    else:  # (B + g / pi) (x) (A + pi g) with pi = 1
        close(found[12:], v[12:] / 0.5, "two factors of zero")
        dense = torch.kron(H["a"].B + 0.5**0.5 * torch.eye(2).double(), 0.5**0.5 * torch.eye(3, dtype=torch.float64))
        close(found[:6], torch.linalg.solve(dense, v[:6]), "one factor of zero")


def test_samples_have_the_inverse_as_covariance():
    torch.manual_seed(0)
    values = {"w": Factors(psd(3), psd(2)), "b": Factors(None, psd(2)), "d": torch.rand(2).double() + 0.5}
    H = hbp.curvature(values, {"w": (2, 3), "b": (2,), "d": (2,)})
    for split in ("exact", "pi"):
        draws = H.sample(40000, 0.7, generator=torch.Generator().manual_seed(1), split=split)
        assert {name: tuple(part.shape) for name, part in draws.items()} == {
            "w": (40000, 2, 3), "b": (40000, 2), "d": (40000, 2)}
        drawn = rows(draws)
        right = H.inverse(0.7, split=split).to_dense()
        spread = right.diagonal().sqrt()
        gap = (drawn.T @ drawn / len(drawn) - right) / spread / spread.unsqueeze(1)
        assert gap.abs().max() < 0.03  # six standard deviations
        assert (drawn.mean(0) / spread).abs().max() < 0.03
        # the same draws from the same generator: (H + damping)^-1/2 times numbers that do not depend on H
        few = H.sample(3, 0.7, generator=torch.Generator().manual_seed(2), split=split)
        plain = hbp.curvature(values, H.shapes).sample(3, 0.7, generator=torch.Generator().manual_seed(2), split=split)
        numbers = torch.Generator().manual_seed(2)
        noise = [torch.randn(3, *shape, dtype=torch.float64, generator=numbers) for shape in H.shapes.values()]
        right = H.power(-0.5, 0.7, split=split) @ noise
        for part, other, expected in zip(few.values(), plain.values(), right, strict=True):
            assert torch.equal(part, other)
            close(part, expected, "draws")


def test_eigenvectors_are_found_once(monkeypatch):
    calls, found = itertools.count(1), torch.linalg.eigh
    last = [0]

    def eigh(matrix, *, out):
        last[0] = next(calls)
        assert matrix.dtype == torch.float64
        assert out[1] is matrix  # no second matrix beside LAPACK's own
        return found(matrix, out=out)

    monkeypatch.setattr(torch.linalg, "eigh", eigh)
    H = hbp.curvature({"w": Factors(psd(3, dtype=torch.float32), psd(2, dtype=torch.float32))}, {"w": (2, 3)})
    v = torch.randn(6)
    assert last == [0]
    _ = H @ v, H.trace(), H.diag(), H.to_dense(), H.state_dict()
    assert last == [0]
    for damping in (0.1, 0.2):
        _ = H.solve(v, damping), H.logdet(damping), H.sample(2, damping), H.inverse(damping), (2 * H).solve(v, damping)
        _ = H.solve(v, damping, split="pi"), H.power(-0.5, damping, split="pi").solve(v), H.to("cpu").solve(v, damping)
    assert last == [2]


def test_float32_is_solved_in_float64():
    torch.manual_seed(0)
    values = {"w": Factors(psd(30, dtype=torch.float32), psd(20, dtype=torch.float32))}
    H = hbp.curvature(values, {"w": (20, 30)})
    v = torch.randn(20, 30)
    D = torch.kron(*(factor.double() for factor in reversed(values["w"]))) + 1e-5 * torch.eye(600).double()
    right = torch.linalg.solve(D, v.double().flatten())
    assert H.solve({"w": v}, 1e-5)["w"].dtype == torch.float32
    close(H.solve({"w": v}, 1e-5)["w"].flatten().double(), right, "float32 in, float32 out", tolerance=1e-6)
    close(H.solve({"w": v.double()}, 1e-5)["w"].flatten(), right, "a float64 vector", tolerance=1e-9)
    wide = H.to(dtype=torch.float64)
    assert wide.dtype == torch.float64
    assert (wide @ v.flatten()).dtype == wide.solve([v], 1e-5)[0].dtype == torch.float32
    close(wide.solve([v.double()], 1e-5)[0].flatten(), right, "float64 factors", tolerance=1e-9)
    assert H.inverse(1e-5).dtype == H.diag()["w"].dtype == H.sample(2, 1e-5)["w"].dtype == torch.float32
    parameters = {"w": torch.zeros(20, 30)}
    H = hbp.curvature({"w": Factors(psd(30), psd(20))}, parameters)  # as totals have them, of a model in float32
    again = hbp.Curvature.from_state_dict(H.state_dict())
    for own in (H, again, H.inverse(0.1), 2 * H, H.to("cpu")):
        assert (own.dtype, own.sample(2, 0.1, "exact")["w"].dtype) == (torch.float64, torch.float32)
    assert H.to(dtype=torch.float64).sample(2, 0.1)["w"].dtype == torch.float64


def test_triangles():
    for matrix in (psd(1), psd(4), psd(3, 2)):
        entries = upper_triangle(matrix)
        assert entries.shape == (*matrix.shape[:-2], matrix.shape[-1] * (matrix.shape[-1] + 1) // 2)
        close(from_upper_triangle(entries), matrix, "triangle")
    with pytest.raises(hbp.InputError, match="not the shape of a matrix's upper triangle"):
        from_upper_triangle(torch.zeros(5))


def test_what_has_nothing_in_common_has_zeros_in_the_inverse():
    """Dead units: traces of 1e-40 would make every product with the inverse slow."""
    torch.manual_seed(0)
    B = torch.zeros(8, 8)
    B[:4, :4] = psd(4, dtype=torch.float32)
    B[0, 6] = B[6, 0] = 1e-30
    H = hbp.curvature({"w": Factors(psd(5, dtype=torch.float32), B)}, {"w": (8, 5)})
    inverse = H.inverse(0.1, split="pi")["w"].B
    assert not inverse[:4, 4:].any()
    assert inverse[:4, :4].all()
    assert inverse.diagonal()[4:].all()

"""What does not fit is refused before anything is computed, all of it in one message; and files."""

import copy
import io
import math
import sys

import pytest
import torch
from torch import nn

import hbpcompiler as hbp
from tests.curvature.test_blocks import Eigen, Factors, close, orthogonal, psd

SHAPES = {"w": (2, 3), "b": (2,), "d": (4,)}


def values():
    torch.manual_seed(0)
    return {"w": Factors(psd(3), psd(2)), "b": Factors(None, psd(2)), "d": torch.rand(4).double() + 0.5}


def curvature():
    return hbp.curvature(values(), SHAPES)


def vector(**changes):
    parts = {name: torch.ones(shape, dtype=torch.float64) for name, shape in SHAPES.items()}
    return {name: part for name, part in (parts | changes).items() if part is not None}


def indefinite():
    return {**values(), "b": Factors(None, torch.tensor([[1.0, 0], [0, -2]]).double()), "d": -torch.ones(4).double()}


@pytest.mark.parametrize(("change", "message"), [
    ({"w": Factors(psd(3), psd(3))}, r"'w': factors of shapes \[\[3, 3\], \[3, 3\]\] do not fit a parameter \[2, 3\]"),
    ({"w": Factors(psd(3), torch.ones(2, 3))}, "'w': factors of shapes .* are not square"),
    ({"w": Factors(psd(3, 2), psd(2))}, "'w': .*not one for each group"),
    ({"w": Factors(psd(3), psd(2).float().double() * float("nan"))}, "'w': B has entries that are NaN"),
    ({"w": Factors(torch.ones(3, 3).long(), psd(2))}, "'w': A is of torch.int64"),
    ({"w": Factors(torch.arange(9.0).view(3, 3), psd(2))}, "'w': A is not symmetric"),
    ({"w": Factors(psd(3), None)}, "'w': B is no tensor but NoneType"),
    ({"w": Eigen(orthogonal(3), torch.ones(2, 2).double(), torch.ones(2, 3).double())},
     "'w': the columns of B are not orthonormal"),
    ({"w": Eigen(orthogonal(3), orthogonal(2), torch.ones(5).double())}, r"'w': .*and eigenvalues \[5\] do not fit"),
    ({"w": (psd(3), psd(2))}, "'w': tuple is neither a tensor nor a named tuple of A and B"),
    ({"b": Factors(None, psd(3))}, r"'b': B has shape \[3, 3\]; for a parameter \[2\] it has to be \[2, 2\]"),
    ({"d": torch.ones(3)}, r"'d': the value has shape \[3\]; .* \[4\] \(a diagonal\) or \[4, 4\] \(a block\)"),
    ({"d": torch.full((4,), math.inf)}, "'d': the value has entries that are NaN or infinite"),
    ({"stranger": torch.ones(4)}, "'stranger': no such parameter; there are 'w', 'b', 'd'"),
])
def test_values_that_do_not_fit(change, message):
    with pytest.raises(hbp.InputError, match=message):
        hbp.curvature(values() | change, SHAPES)


def test_all_of_them_are_listed():
    wrong = {"w": Factors(psd(3), psd(3)), "b": torch.ones(5), "d": torch.ones(3)}
    with pytest.raises(hbp.InputError) as caught:
        hbp.curvature(wrong, SHAPES)
    assert str(caught.value).count("\n  - ") == 3


@pytest.mark.parametrize(("arguments", "options", "message"), [
    ((values(),), {}, "shapes are not known, as these values come from no result: add parameters=model"),
    ((torch.ones(3), SHAPES), {}, "a mapping from parameter name to value, not Tensor"),
    (({}, SHAPES), {}, "there are no parameters in it"),
    ((values(), [1, 2]), {}, "parameters must be a model, or a dict"),
    ((values(), {"w": "wide"}), {}, "parameters: 'w' must be a tensor or a shape, not 'wide'"),
    ((values(), SHAPES), {"layouts": {"w": "oi"}}, "layouts: 'w': 'oi'"),
    ((values(), SHAPES), {"layouts": {"x": "out, in"}}, "layouts: 'x'"),
    ((values(), SHAPES), {"layouts": "out, in"}, "layouts must be a dict by parameter name"),
    ((values(), SHAPES), {"joint_biases": {"w": "x"}}, "joint_biases: 'w': 'x'"),
    (({"w": Factors(psd(4), psd(2)), "b": psd(2)}, SHAPES), {"joint_biases": {"w": "b"}}, "'b' has a value of its own"),
    (({"w": Factors(psd(3), psd(2))}, {"w": (1, 6)}), {}, "neither its 2 outputs nor its 3 inputs: say layouts="),
])
def test_arguments_that_do_not_fit(arguments, options, message):
    with pytest.raises(hbp.InputError, match=message):
        hbp.curvature(*arguments, **options)


@pytest.mark.parametrize(("given", "message"), [
    (vector(w=None), "no vector for 'w'"),
    (vector(x=torch.ones(2)), "'x': not in this curvature, which has 'w', 'b', 'd'"),
    (vector(w=torch.ones(3, 2)), r"'w' has shape \[3, 2\], and the parameter \[2, 3\]"),
    (vector(w=torch.ones(1, 1, 2, 3)), r"'w' has shape \[1, 1, 2, 3\]"),
    (vector(w=torch.ones(5, 2, 3)), "'w' has F = 5 in front\n  - 'b' has no F in front"),
    (vector(w=torch.ones(2, 3).long()), "'w' is of torch.int64, and must be of a floating-point dtype"),
    (vector(w=torch.ones(2, 3) * 1j), "'w' is of torch.complex64"),
    (vector(w=[1, 2]), "'w' is no tensor but list"),
    (vector(w=torch.ones(2, 3, device="meta")), "'w' is on meta, and the curvature on cpu"),
    ([torch.ones(2, 3), torch.ones(2)], "a list of 2 tensors does not fit: there are 3 parameters, 'w', 'b', 'd'"),
    (torch.ones(11), r"of shape \[11\] does not fit: it has to be \[12\], or \[12, F\]"),
    (torch.ones(3, 12), r"of shape \[3, 12\] does not fit"),
    (torch.ones(12).int(), "the vector is of torch.int32"),
    ("w", "str is no vector: a vector is a dict"),
    (3.0, "float is no vector"),
])
def test_vectors_that_do_not_fit(given, message):
    H = curvature()
    for function in (H.__matmul__, lambda v: H.solve(v, 0.1)):
        with pytest.raises(hbp.InputError, match=message):
            function(given)


@pytest.mark.parametrize(("damping", "message"), [
    (-0.1, "damping must be a number, at least 0.*\n  - -0.1"),
    (math.nan, "nan"),
    (math.inf, "inf"),
    ("1e-3", "'1e-3'"),
    (True, "True"),
    (torch.ones(2), "tensor"),
    ({"w": 0.1, "b": 0.1}, "none for 'd'"),
    ({"w": 0.1, "b": 0.1, "d": 1, "x": 1}, "'x' is no parameter of this curvature, nor a pattern"),
    ({"w": 0.1, "b?": 0.1, "*": 1}, "'b.' is no parameter of this curvature, nor a pattern"),
    ({"w": -1, "b": 0.1, "d": 1}, "-1 for 'w'"),
])
def test_dampings_that_do_not_fit(damping, message):
    H = curvature()
    for function in (H.inverse, H.logdet, lambda d: H.solve(vector(), d), lambda d: H.power(0.5, d),
                     lambda d: H.sample(1, d)):
        with pytest.raises(hbp.InputError, match=message):
            function(damping)


def test_other_arguments():
    H = curvature()
    joint = hbp.curvature({"w": Factors(psd(4), psd(2))}, {"w": (2, 3), "b": (2,)}, joint_biases={"w": "b"})
    for wrong, message in [
        (lambda: H.solve(vector(), 0.1, split="martens"), "split must be one of 'exact', 'pi'"),
        (lambda: H.power("2"), "the power must be a number"),
        (lambda: H.power(math.nan), "the power must be a number"),
        (lambda: H.sample(-1, 0.1), "the number of samples must be an integer"),
        (lambda: H.sample(2.0, 0.1), "the number of samples must be an integer"),
        (lambda: H.sample(2, 0.1, "exact", 3), "generator must be a torch.Generator, not 3"),
        (lambda: -1 * H, "multiplied by positive numbers"),
        (lambda: H / 0, "divided by positive numbers, not by 0"),
        (lambda: H.to(dtype=torch.int32), "dtype must be a floating-point dtype"),
        (lambda: joint.inverse({"w": 1.0, "b": 2.0}), "'w' with 'b' are one block, and have one damping .or "
         "sum of damping and l2., not 1 and 2"),
        (lambda: H.inverse(0.1).solve(vector(), 0.1, split="pi"), "'w' .* no factors that could share the damping"),
    ]:
        with pytest.raises(hbp.InputError, match=message):
            wrong()
    with pytest.raises(KeyError, match="this curvature has w, b, d"):
        H["x"]
    assert H.inverse({"w": torch.tensor(0.1), "b": 1, "d": 2}).names == ("w", "b", "d")
    by_name, by_pattern = (H.solve(vector(), given) for given in ({"w": 0.1, "b": 1, "d": 0.1}, {"*": 0.1, "[b]": 1}))
    assert all(torch.equal(by_name[name], by_pattern[name]) for name in H.names)
    close((H / 4).to_dense(), H.to_dense() / 4, "divided")
    assert (list(H), len(H), "w" in H, "x" in H, H.shape) == (["w", "b", "d"], 3, True, False, (12, 12))
    assert "12 x 12, 3 blocks: Dense, Diagonal, Kronecker; torch.float64, cpu" in repr(H)
    assert tuple(H.sample(0, 0.1)["w"].shape) == (0, 2, 3)


@pytest.mark.parametrize("split", ["exact", "pi"])
def test_singular_blocks_need_damping(split):
    singular = {"w": Factors(psd(3, rank=1), psd(2)), "b": Factors(None, torch.zeros(2, 2).double()),
                "d": torch.tensor([0.0, 1e-30, 1, 2]).double()}
    for dtype in (torch.float64, torch.float32):
        H = hbp.curvature(singular, SHAPES).to(dtype=dtype)
        for function in (H.inverse, H.logdet, lambda split, H=H: H.solve(vector(), split=split),
                         lambda split, H=H: H.sample(1, split=split), lambda split, H=H: H.power(-0.5, split=split)):
            with pytest.raises(hbp.InputError) as caught:
                function(split=split)
            assert [f"'{name}' (a curvature) is singular" in str(caught.value) for name in SHAPES] == [True] * 3
        root = H.power(0.5, split=split).to_dense().double()
        close(root @ root, H.to_dense().double(), "root", tolerance=1e-6)
        assert H.solve(vector(), 1e-3, split=split)["d"][0] == pytest.approx(1e3)


@pytest.mark.parametrize("split", ["exact", "pi"])
def test_indefinite_blocks_are_refused_with_the_damping_that_would_do(split):
    inputs, outputs = torch.tensor([4.0, 1, 1]).double(), torch.tensor([1.0, -1]).double()
    kronecker = {"w": Factors(inputs.diag(), outputs.diag())}
    for given, needed in ((indefinite(), 2.0), (kronecker, 4.0 if split == "exact" else 2.0)):
        H = hbp.curvature(given, SHAPES)
        for function in (H.inverse, H.logdet, lambda *d, H=H, **o: H.solve(torch.ones(H.shape[0]), *d, **o),
                         lambda *d, H=H, **o: H.power(0.5, *d, **o), lambda *d, H=H, **o: H.sample(1, *d, **o)):
            with pytest.raises(hbp.InputError, match=f"is indefinite, .* a damping above {needed:.3g} would do"):
                function(needed - 0.01, split=split)
            function(needed + 0.01, split=split)
        close(H @ torch.ones(H.shape[0]).double(), H.to_dense().sum(1), "products need no sign")
        eigenvalues = torch.linalg.eigvalsh(H.inverse(needed + 0.01, split=split).to_dense())
        assert (eigenvalues > 0).all()


def test_eigh_is_tried_again_with_jitter(monkeypatch):
    found, matrices = torch.linalg.eigh, []

    def fails(times):
        def eigh(matrix, *, out):
            matrices.append(matrix.clone())
            if len(matrices) <= times:
                out[1].fill_(float("nan"))  # the same memory: what is tried next must not begin with it
                raise torch.linalg.LinAlgError("it did not converge")
            return found(matrix, out=out)
        return eigh

    monkeypatch.setattr(torch.linalg, "eigh", fails(2))
    H = hbp.curvature({"b": psd(2)}, SHAPES)
    right = torch.linalg.inv(H.to_dense() + 0.1 * torch.eye(2).double())
    close(H.power(-2.0, 0.1).to_dense(), right @ right, "after two failures")
    assert [bool((matrix - matrices[0]).diagonal().min() > 0) for matrix in matrices] == [False, True, True]
    matrices.clear()
    monkeypatch.setattr(torch.linalg, "eigh", fails(99))
    with pytest.raises(hbp.InputError, match=r"eigh fails for B of 'w' \(a curvature\), of shape \[2, 2\]"):
        curvature().inverse(0.1)


# -- elsewhere -------------------------------------------------------------------------------------------------------


def all_kinds():
    return hbp.curvature({**values(), "e": Eigen(orthogonal(2, 3), orthogonal(2, 3), torch.rand(3, 2, 2).double()),
                          "f": Eigen(None, orthogonal(2), torch.rand(2).double()),
                          "g": Factors(psd(2, 2), psd(2, 2)), "j": Factors(psd(4), psd(2))},
                         {**SHAPES, "e": (6, 2), "f": (2,), "g": (4, 2), "j": (2, 3), "k": (2,)},
                         layouts={"e": "out, in", "g": "in, out"}, joint_biases={"j": "k"})


def test_files_hold_upper_triangles():
    H = all_kinds()
    file = io.BytesIO()
    torch.save(H.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    again = hbp.Curvature.from_state_dict(state)
    assert torch.equal(again.to_dense(), H.to_dense())
    assert torch.equal(again.inverse(0.1).to_dense(), H.inverse(0.1).to_dense())
    assert (again.names, again.shapes, repr(again)) == (H.names, H.shapes, repr(H))
    entries = {tuple(entry["names"]): entry for entry in state["blocks"]}
    assert tuple(entries["w",]["A"].shape) == (6,)
    assert tuple(entries["g",]["A"].shape) == (2, 3)
    assert tuple(entries["b",]["matrix"].shape) == (3,)
    copied = copy.deepcopy(H)
    assert torch.equal(copied.to_dense(), H.to_dense())


def test_damaged_files():
    state = all_kinds().state_dict()

    def with_entry(number, **changes):
        blocks = list(state["blocks"])
        blocks[number] = {key: value for key, value in (blocks[number] | changes).items() if value is not None}
        return {**state, "blocks": blocks}

    for wrong, message in [
        ({}, "no state of a curvature"),
        (3, "no state of a curvature"),
        ({**state, "format": "hbpcompiler curvature 7"}, "its format is 'hbpcompiler curvature 7', not"),
        ({**state, "blocks": state["blocks"][1:]}, "not of the parameters that it names"),
        ({**state, "blocks": None}, "damaged: TypeError"),
        ({**state, "names": None}, "damaged: TypeError"),
        (with_entry(0, A=None), "damaged: KeyError: 'A'"),
        (with_entry(0, kind="Circulant"), "damaged: KeyError: 'Circulant'"),
        (with_entry(0, A=torch.ones(5)), "damaged: .*upper triangle"),
        (with_entry(0, A=torch.ones(3)), r"damaged: .*\[2, 2\] where a tensor of shape \[3, 3\]"),
        (with_entry(0, A=torch.full((6,), math.nan)), "damaged: .* is not finite"),
        (with_entry(0, layout="sideways"), "damaged: "),
        (with_entry(0, inputs=4), "damaged: .*does not have 1 x 2 x 4 entries"),
    ]:
        with pytest.raises(hbp.InputError, match=message):
            hbp.Curvature.from_state_dict(wrong)


def test_scipy_sees_a_matrix(monkeypatch):
    H, linalg = all_kinds(), pytest.importorskip("scipy.sparse.linalg")
    D, operator = H.to_dense(), H.to_scipy()
    assert (operator.shape, operator.dtype) == (tuple(D.shape), D.numpy().dtype)
    X = torch.randn(len(D), 3, dtype=torch.float64)
    close(torch.from_numpy(operator @ X.numpy()), D @ X, "matrix")
    close(torch.from_numpy(operator.T @ X[:, 0].numpy()), D @ X[:, 0], "vector")
    top = linalg.eigsh(operator, k=3, return_eigenvectors=False)
    close(torch.from_numpy(top).sort().values, torch.linalg.eigvalsh(D)[-3:], "eigenvalues", tolerance=1e-6)
    half = H.to(dtype=torch.bfloat16).to_scipy()
    assert (half @ X.numpy()).dtype == half.dtype
    monkeypatch.setitem(sys.modules, "scipy.sparse.linalg", None)
    with pytest.raises(ImportError, match="pip install scipy") as caught:
        H.to_scipy()
    assert isinstance(caught.value, hbp.HbpError)


def test_a_network_without_anything_said():
    """Programs of some parameters, frozen ones, and a curvature of what they have."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3)).double()
    model[0].bias.requires_grad_(False)
    batch = torch.randn(5, 4).double(), torch.randint(3, (5,))
    compiled = hbp.compile(model, nn.CrossEntropyLoss(reduction="sum"), {"kfac": "*.weight", "grad": "*"})
    result = compiled(*batch)
    H = hbp.curvature(result.kfac)
    assert H.names == ("0.weight", "2.weight")
    with pytest.raises(hbp.InputError, match=r"'2\.bias': not in this curvature"):
        H.solve(result.grad, 0.1)
    found = H.solve({name: result.grad[name] for name in H}, 0.1)
    assert {name: part.shape for name, part in found.items()} == {name: model.get_parameter(name).shape for name in H}


def test_a_factor_that_is_indefinite_is_named_though_the_block_is_zero():
    """B is zero, as of a layer that is dead; the damping is shared by both factors."""
    inputs, outputs = torch.tensor([4.0, 1, -1]).double(), torch.zeros(2).double()
    H = hbp.curvature({"w": Factors(inputs.diag(), outputs.diag())}, {"w": (2, 3)})
    with pytest.raises(hbp.InputError, match=r"A has eigenvalues from -1 to 4; a damping above 1 would do"):
        H.inverse(0.5, split="pi")
    H.inverse(0.5, split="exact")
    H.inverse(1.1, split="pi")

"""Columns of curvature in a dtype of their own: how far results may move, and what must not move at all."""

import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.command.cli import main
from tests.networks import dense_chains, settings_of, spatial_chains
from tests.selection import few, slow

FIRST_ORDER = ["grad", "batch_grad", "batch_l2", "second_moment", "variance", "batch_dot"]
CURVATURE = ["diag_ggn", "diag_h", "diag_h_split", "batch_diag_ggn", "batch_diag_h", "trace_h", "sqrt_ggn", "block",
             "kflr", "kflr_reduce"]
SAMPLED = ["diag_ggn_mc", "diag_h_mc", "diag_h_mc_all", "sqrt_ggn_mc", "kfac", "kfac_reduce"]
SINGLE, HALF = 1e-5, 0.03
"""What float32 and bfloat16 may change of a quantity, relative and in norm."""


class Branches(nn.Module):
    """A residual connection, a product of two branches and a layer that is used twice."""

    def __init__(self):
        super().__init__()
        self.stem, self.left, self.right, self.head = (nn.Linear(6, 5), nn.Linear(5, 5), nn.Linear(5, 5),
                                                       nn.Linear(5, 3))

    def forward(self, x):
        x = torch.tanh(self.stem(x))
        x = x + torch.sigmoid(self.left(x)) * self.right(x)
        return self.head(torch.cat([x[:, :2], torch.sigmoid(x[:, 2:])], 1))


def mlp():
    return nn.Sequential(nn.Linear(6, 8), nn.Sigmoid(), nn.Linear(8, 7), nn.Sigmoid(), nn.Linear(7, 3)), (6,)


def cnn():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.Sigmoid(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(),
                         nn.MaxPool2d(3), nn.Flatten(), nn.Linear(4, 5), nn.Sigmoid(), nn.Linear(5, 3)), (1, 8, 8)


def branches():
    return Branches(), (6,)


NETWORKS = {"mlp": mlp, "cnn": cnn, "branches": branches}


def problem(name, dtype):
    torch.manual_seed(0)
    model, shape = NETWORKS[name]()
    return model.to(dtype), torch.randn(12, *shape, dtype=dtype), torch.randint(3, (12,))


def tensors(item):
    """All tensors of a quantity's values, in order."""
    if isinstance(item, torch.Tensor):
        return [item]
    return [tensor for part in item or () for tensor in tensors(part)]


def error(found, expected):
    """Of all of a quantity's tensors together, relative and in norm; their shapes and dtypes must be the same."""
    pairs = [pair for name in expected for pair in zip(tensors(found[name]), tensors(expected[name]), strict=True)]
    assert all((one.shape, one.dtype) == (other.shape, other.dtype) for one, other in pairs)
    wrong = sum((one - other).double().square().sum() for one, other in pairs)
    return float((wrong / sum(other.double().square().sum() for _, other in pairs).clamp(min=1e-30)).sqrt())


def both(model, X, y, quantities, dtype, loss=None, **options):
    """The results with the option and without it, with the same random draws, and the program with it."""
    plain = hbp.compile(model, loss, quantities, **options)
    rounded = hbp.compile(model, loss, quantities, curvature_dtype=dtype, **options)
    results = [compiled(X, y, generator=torch.Generator().manual_seed(0)) for compiled in (rounded, plain)]
    return *results, rounded


PAIRS = [("mlp", torch.float32, torch.bfloat16, HALF), ("mlp", torch.float32, torch.float16, HALF),
         ("cnn", torch.float64, torch.float32, SINGLE), ("branches", torch.float32, torch.float64, SINGLE)]  # fmt: skip
EVERY_PAIR = [*PAIRS, *[(name, *pair) for name in NETWORKS for pair in [
    (torch.float64, torch.float32, SINGLE), (torch.float32, torch.bfloat16, HALF), (torch.float32, torch.float16, HALF),
    (torch.float32, torch.float64, SINGLE)] if (name, *pair) not in PAIRS]]


@few(1, "other networks")
@pytest.mark.parametrize(("name", "model_dtype", "dtype", "bound"), [
    pytest.param(*pair, marks=[] if pair in PAIRS else slow("each network and each dtype is in another pair"))
    for pair in EVERY_PAIR], ids=str)
def test_results_are_near_and_gradients_the_same(name, model_dtype, dtype, bound):
    model, X, y = problem(name, model_dtype)
    found, expected, compiled = both(model, X, y, [*FIRST_ORDER, *CURVATURE, *SAMPLED], dtype)
    assert torch.equal(found.loss, expected.loss)
    assert torch.equal(found.output, expected.output)
    for quantity in FIRST_ORDER:
        for key, value in expected[quantity].items():
            assert torch.equal(found[quantity][key], value), f"{quantity} of {key}"
    for quantity in (*CURVATURE, *SAMPLED):
        assert error(found[quantity], expected[quantity]) < bound, quantity
    assert str(dtype) in compiled.code
    assert str(dtype) in compiled.explain()


def test_kfra_keeps_its_matrix():
    model, X, y = problem("mlp", torch.float32)
    found, expected, _ = both(model, X, y, ["kfra"], torch.bfloat16)
    assert error(found.kfra, expected.kfra) < HALF
    assert torch.equal(found.kfra["0.weight"].B, expected.kfra["0.weight"].B)


def test_eigenvectors_are_not_rounded():
    model, X, y = problem("mlp", torch.float32)
    found, expected, _ = both(model, X, y, ["ekfac"], torch.bfloat16)
    for name, part in found.ekfac.items():
        for basis in filter(lambda basis: basis is not None, (part.A, part.B)):
            torch.testing.assert_close(basis.T @ basis, torch.eye(len(basis)), rtol=0, atol=1e-5)
        sums = part.eigenvalues.sum(), expected.ekfac[name].eigenvalues.sum()
        torch.testing.assert_close(*sums, rtol=HALF, atol=0)


def test_products_with_the_block():
    model, X, y = problem("cnn", torch.float32)
    plain, rounded = (hbp.compile(model, quantities=["block"], curvature_dtype=dtype) for dtype in (None,
                                                                                                   torch.bfloat16))
    vectors = torch.randn(3, *model[3].weight.shape)
    expected = plain.block_product(plain(X, y), "3.weight", vectors)
    found = rounded.block_product(rounded(X, y), "3.weight", vectors)
    assert error({"": found}, {"": expected}) < HALF


@given(st.one_of(settings_of(dense_chains()), settings_of(spatial_chains())))
def test_random_networks(setting):
    model, loss, X, y = setting
    found, expected, _ = both(model, X, y, ["grad", "diag_h", "kflr"], torch.float32, loss)
    for key, value in expected.grad.items():  # not rounded to single; the order of its products may be another
        torch.testing.assert_close(found.grad[key], value, rtol=1e-13, atol=1e-13 * float(1 + value.abs().max()))
    for quantity in ("diag_h", "kflr"):
        assert error(found[quantity], expected[quantity]) < 10 * SINGLE, quantity


@slow("chunks and dtypes each have tests")
@pytest.mark.parametrize("chunk", [700, pytest.param(1, marks=slow("the same loops, shorter"))])
def test_in_chunks(chunk):
    model, X, y = problem("cnn", torch.float64)
    limits = hbp.Limits(few_columns=0, spatial_bytes=64, recycled_bytes=chunk, vector_bytes=64,
                        vector_chunk_bytes=chunk)
    found, expected, compiled = both(model, X, y, ["diag_h", "kflr"], torch.float32, limits=limits)
    assert "in chunks" in compiled.explain()
    for quantity in ("diag_h", "kflr"):
        assert error(found[quantity], expected[quantity]) < SINGLE
    program = compiled.code.partition("class Program")[2]
    totals = [line for line in program.splitlines() if ".new_zeros((" in line]
    assert totals
    assert all("dtype=torch.float64" in line for line in totals)


def test_pooled_columns():
    model, X, y = problem("cnn", torch.float64)
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.MaxPool2d(3), nn.Flatten(), nn.Linear(32, 3)).double()
    found, expected, compiled = both(model, X, y, ["diag_ggn"], torch.float32)
    assert "pooled" in compiled.code
    assert error(found.diag_ggn, expected.diag_ggn) < SINGLE


@pytest.mark.parametrize("activation", [nn.Sigmoid, pytest.param(nn.ReLU, marks=slow("no residuals"))])
def test_compressed_columns(activation):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 6), activation(), nn.Linear(6, 2), activation(), nn.Linear(2, 6), activation(),
                          nn.Linear(6, 40))
    X, y = torch.randn(3, 40), torch.randn(3, 40)
    found, expected, compiled = both(model, X, y, ["diag_ggn", "diag_h"], torch.bfloat16, nn.MSELoss(),
                                     limits=hbp.Limits(compressed_growth=2))
    assert "torch.linalg" in compiled.code
    for quantity in ("diag_ggn", "diag_h"):
        assert error(found[quantity], expected[quantity]) < HALF


def test_residuals_that_begin_as_unit_vectors():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3, bias=False), nn.ELU(), nn.Linear(3, 1), nn.Mish(), nn.Flatten(),
                          nn.Linear(2, 4)).double()
    X, y = torch.randn(5, 2, 4, dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64)
    found, expected, compiled = both(model, X, y, ["diag_h"], torch.float32, nn.MSELoss())
    assert "torch.eye(" in compiled.code
    assert error(found.diag_h, expected.diag_h) < SINGLE


def test_a_layer_used_twice():
    torch.manual_seed(0)
    layer = nn.Linear(5, 5)
    model = nn.Sequential(layer, nn.Sigmoid(), layer, nn.Sigmoid(), nn.Linear(5, 3)).double()
    X, y = torch.randn(7, 5, dtype=torch.float64), torch.randint(3, (7,))
    found, expected, _ = both(model, X, y, ["grad", "diag_ggn"], torch.float32)
    assert torch.equal(found.grad["0.weight"], expected.grad["0.weight"])
    assert error(found.diag_ggn, expected.diag_ggn) < SINGLE


def test_a_model_of_two_dtypes():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(4, 5), nn.Linear(5, 3).double()

        def forward(self, x):
            return self.second(torch.sigmoid(self.first(x)).double())

    torch.manual_seed(0)
    model, X, y = Mixed(), torch.randn(6, 4), torch.randint(3, (6,))
    found, expected, _ = both(model, X, y, ["grad", "diag_h"], torch.bfloat16)
    for key, value in expected.grad.items():
        assert torch.equal(found.grad[key], value)
    assert error(found.diag_h, expected.diag_h) < HALF


def test_a_loss_written_out():
    def loss(output, target):
        return ((output - target) ** 2).mean() + output.exp().sum(1).mean()

    model, X, _ = problem("mlp", torch.float64)
    found, expected, _ = both(model, X, torch.randn(12, 3, dtype=torch.float64), ["diag_h", "diag_ggn_mc"],
                              torch.float32, loss)
    assert error(found.diag_h, expected.diag_h) < SINGLE
    assert error(found.diag_ggn_mc, expected.diag_ggn_mc) < SINGLE


def test_torchscript():
    model, X, y = problem("cnn", torch.float32)
    found, expected, compiled = both(model, X, y, ["diag_h", "kflr"], torch.bfloat16, backend="torchscript")
    assert isinstance(compiled.program, torch.jit.ScriptModule)
    assert error(found.diag_h, expected.diag_h) < HALF
    assert error(found.kflr, expected.kflr) < HALF


@slow("other options with it; each has tests of its own")
def test_autotune_and_memory_budget(tmp_path, monkeypatch):
    monkeypatch.setenv("HBP_CACHE_DIR", str(tmp_path))
    model, X, y = problem("cnn", torch.float32)
    for options in ({"autotune": True}, {"memory_budget": "120KiB"}):
        found, expected, _ = both(model, X, y, ["diag_h", "kflr"], torch.bfloat16, **options)
        assert error(found.diag_h, expected.diag_h) < HALF
        assert error(found.kflr, expected.kflr) < HALF


def test_columns_take_half_the_memory():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.Sigmoid(), nn.Flatten(),
                          nn.Linear(16 * 36, 10))
    X, y = torch.randn(8, 1, 10, 10), torch.randint(10, (8,))
    plain, rounded = (hbp.compile(model, quantities=["diag_ggn"], curvature_dtype=dtype, example_inputs=(X, y))
                      for dtype in (None, torch.bfloat16))
    assert rounded.predicted_memory(256) < 0.7 * plain.predicted_memory(256)


@few(1, "further cases of one kind")
@pytest.mark.parametrize("dtype", [None, torch.float32])
def test_without_the_option_nothing_is_cast(dtype):
    model, X, y = problem("cnn", torch.float32)
    code = hbp.compile(model, quantities=[*FIRST_ORDER, *CURVATURE], curvature_dtype=dtype, example_inputs=(X, y)).code
    assert ".to(torch." not in code
    assert "dtype=torch." not in code
    assert code == hbp.compile(model, quantities=[*FIRST_ORDER, *CURVATURE], example_inputs=(X, y)).code


def test_first_order_quantities_alone_have_no_casts():
    model, X, y = problem("cnn", torch.float32)
    code = hbp.compile(model, quantities=FIRST_ORDER, curvature_dtype=torch.bfloat16, example_inputs=(X, y)).code
    assert ".to(torch." not in code


def test_each_tensor_is_cast_once():
    model, X, y = problem("mlp", torch.float32)
    code = hbp.compile(model, quantities=["diag_h", "kflr"], curvature_dtype=torch.bfloat16, example_inputs=(X, y)).code
    casts = [line.split(" = ")[1] for line in code.splitlines() if line.split("  #")[0].endswith(".to(torch.bfloat16)")]
    assert casts
    assert len(casts) == len(set(casts))
    assert "rounded_weight_2 = weight_2.to(torch.bfloat16)" in code


@pytest.mark.parametrize(("value", "kind"), [("bf16", TypeError), (16, TypeError), (float, TypeError),
                                             (torch.int8, ValueError), (torch.complex64, ValueError),
                                             (torch.bool, ValueError), (torch.float8_e5m2, ValueError)])
def test_other_values_are_refused(value, kind):
    with pytest.raises(hbp.CompileError, match="curvature_dtype") as caught:
        hbp.compile(nn.Linear(2, 2), quantities=["diag_h"], curvature_dtype=value)
    assert isinstance(caught.value, kind)
    assert "torch.bfloat16" in str(caught.value)


def test_the_command_line(tmp_path, monkeypatch):
    (tmp_path / "roundednet.py").write_text("from torch import nn\n\ndef make():\n    return nn.Linear(4, 3)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    done = CliRunner().invoke(main, ["compile", "roundednet:make", "-q", "diag_h", "-i", "4", "--curvature-dtype",
                                     "bfloat16"])
    assert done.exit_code == 0, done.output
    assert "torch.bfloat16" in done.output

"""Einsums of two matrices become products, large ones in float32 oneDNN's: the same numbers, whatever is summed."""

import copy
import operator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import fx, nn

import hbpcompiler as hbp
from hbpcompiler.compiler.cost.figures import DEFAULT, ONEDNN
from hbpcompiler.compiler.cost.meter import Meter
from hbpcompiler.compiler.optimise.in_place import write_in_place
from hbpcompiler.compiler.optimise.matrix_products import multiply_matrices
from hbpcompiler.compiler.optimise.onednn import multiply_by_onednn
from hbpcompiler.compiler.program import meta
from hbpcompiler.compiler.program.products import onednn_linear, product_over_pixels
from hbpcompiler.reference import reference, relative_error
from hbpcompiler.rule.image_patches import patch_rows, patches
from tests.selection import slow

QUANTITIES = ["grad", "variance", "diag_ggn", "diag_h", "kflr"]
PRODUCTS = ["no,ni->oi", "ni,nz->iz", "nko,nkz->oz", "kno,kni->oi", "on,in->oi", "ab,bc->ac", "nko,nik->oi",
            "nip,nzp->iz", "nkop,nkzp->oz", "nkpo,nkzp->oz", "onk,kni->oi",
            "nko,oz->nkz", "nkoi,iz->nkoz"]
OTHERS = ["no,ni->io", "no,ni->noi", "nko,ni->oi", "ab,b->a", "nkop,nip->nkoi", "ij,nmj->inm", "oi,oi->oi"]
ENTRIES = ["nopi,nopi->oi", "na,na->n", "nk,nk->k", "abc,abc->b", "oi,oi->"]


@given(st.sampled_from(PRODUCTS + ENTRIES + OTHERS), st.lists(st.integers(1, 4), min_size=26, max_size=26),
       st.booleans(), st.integers(0, 2**31))
def test_einsums_keep_their_value(equation, lengths, pixel_by_pixel, seed):
    torch.manual_seed(seed)
    terms = equation.partition("->")[0].split(",")
    operands = [torch.randn(*(lengths[ord(letter) - 97] for letter in term), dtype=torch.float64) for term in terms]
    graph = fx.Graph()
    graph.output(graph.call_function(torch.einsum, (equation, *(graph.placeholder(f"x{n}") for n in range(2)))))
    before = fx.GraphModule(nn.Module(), graph)(*operands)
    multiply_matrices(graph, pixel_by_pixel)
    torch.testing.assert_close(fx.GraphModule(nn.Module(), graph)(*operands), before)
    targets = [node.target for node in graph.nodes]
    assert (torch.einsum in targets) == (equation in OTHERS)
    assert (operator.mul in targets) == (equation in ENTRIES)
    assert (product_over_pixels in targets) == (pixel_by_pixel and equation == "nkop,nkzp->oz")


@pytest.mark.parametrize(("equation", "said"), [
    ("nop,nip->oi", "nop,nip->oi"), ("no,ni->oi", ""), ("npo,npi->oi", ""), ("nko,oz->nkz", "")])
def test_a_product_of_what_was_moved_says_which_einsum_it_is(equation, said):
    graph = fx.Graph()
    graph.output(graph.call_function(torch.einsum, (equation, graph.placeholder("x"), graph.placeholder("y"))))
    multiply_matrices(graph)
    (product,) = [node for node in graph.nodes if node.target is operator.matmul]
    assert meta.equation(product) == said


@given(st.integers(1, 5), st.integers(0, 2**31))
def test_a_matrix_with_itself_is_copied_once(rows, seed):
    torch.manual_seed(seed)
    graph = fx.Graph()
    x = graph.placeholder("x")
    graph.output(graph.call_function(torch.einsum, ("nip,nzp->iz", [x, x])))
    multiply_matrices(graph)
    assert [node.target for node in graph.nodes].count("flatten") == 1
    given = torch.randn(2, rows, 3, dtype=torch.float64)
    found = fx.GraphModule(nn.Module(), graph)(given)
    torch.testing.assert_close(found, torch.einsum("nip,nzp->iz", given, given))


@pytest.mark.parametrize("size", [(5,), (5, 4), (3, 4, 3)])
@pytest.mark.parametrize("read_again", [False, True])
def test_patches_are_laid_as_their_product_reads_them(size, read_again):
    torch.manual_seed(0)
    graph, kernel = fx.Graph(), [2] * len(size)
    columns, x = graph.placeholder("columns"), graph.placeholder("x")
    seen = graph.call_function(patches, (x, kernel), {"padding": [1, 0] * len(size)})
    product = graph.call_function(torch.einsum, ("nop,nip->oi", columns, seen))
    graph.output((product, seen) if read_again else (product,))
    image = torch.randn(2, 3, *size, dtype=torch.float64)
    given = torch.randn(2, 4, patches(image, kernel, padding=[1, 0] * len(size)).shape[2], dtype=torch.float64)
    before = fx.GraphModule(nn.Module(), graph)(given, image)
    multiply_matrices(graph)
    torch.testing.assert_close(fx.GraphModule(nn.Module(), graph)(given, image), before)
    assert (patch_rows in [node.target for node in graph.nodes]) == (not read_again)


def wide():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(96, 128), nn.Sigmoid(), nn.Linear(128, 130), nn.Tanh(), nn.Linear(130, 4))
    return model, torch.randn(3, 96), torch.randint(4, (3,))


def convolutions():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 40, 3, padding=1), nn.Tanh(), nn.Conv2d(40, 24, 3), nn.ReLU(), nn.Flatten(),
                          nn.Linear(24 * 8 * 6, 4))
    return model, torch.randn(3, 3, 10, 8), torch.randint(4, (3,))


@slow("large layers by brute force")
@pytest.mark.parametrize("make", [convolutions, wide])
def test_programs_with_onednn_agree_with_brute_force(make):
    model, X, y = make()
    compiled = hbp.compile(model, quantities=QUANTITIES, example_inputs=(X, y), limits=hbp.Limits(onednn_rows=1))
    assert compiled.code.count("onednn_linear(") >= 5
    result = compiled(X, y)
    double = copy.deepcopy(model).double()
    for quantity in QUANTITIES[:-1]:
        for key, value in reference(double, nn.CrossEntropyLoss(), [X.double()], y, quantity).items():
            assert relative_error(result[quantity][key].double(), value) < 1e-5
    exact = hbp.compile(double, quantities=["kflr"])
    for key, factors in exact(X.double(), y).kflr.items():
        for theirs, ours in zip(factors, result.kflr[key], strict=True):
            assert (ours is None) == (theirs is None)
            if ours is not None:
                assert relative_error(ours.double(), theirs) < 1e-5
    assert "onednn" not in exact.code


@slow("a script is the same program")
def test_scripts_with_onednn():
    model, X, y = convolutions()
    results = [hbp.compile(model, quantities=["batch_l2", "diag_h"], backend=backend,
                           limits=hbp.Limits(onednn_rows=1))(X, y)
               for backend in ("python", "torchscript")]
    for quantity in ("batch_l2", "diag_h"):
        for key, value in results[0][quantity].items():
            assert relative_error(results[1][quantity][key], value) < 1e-5


def test_small_products_do_not_pay_for_it():
    model, X, y = nn.Linear(20, 3), torch.randn(2, 20), torch.tensor([0, 1])
    code = hbp.compile(model, quantities=["grad", "kflr"], example_inputs=(X, y)).code
    assert "onednn" not in code
    assert "einsum" not in code


def test_it_counts_as_a_product_and_is_left_alone_where_it_is_slower():
    graph = fx.Graph()
    left, right = graph.placeholder("left"), graph.placeholder("right")
    product = graph.call_function(operator.matmul, (left, right))
    for node, shape in ((left, ("300", "200")), (right, ("200", "100")), (product, ("300", "100"))):
        node.meta = {"shape": shape, "dtype": torch.float32}
    graph.output(product)
    multiply_by_onednn(graph, DEFAULT)
    assert product in graph.nodes
    multiply_by_onednn(graph, ONEDNN, hbp.Limits(onednn_multiply_adds=10**7))
    assert product in graph.nodes
    multiply_by_onednn(graph, ONEDNN)
    assert [node.target for node in graph.nodes if node.op == "call_function"] == [onednn_linear]
    a, b = torch.randn(300, 200), torch.randn(200, 100)
    with Meter() as meter:
        found = fx.GraphModule(nn.Module(), graph)(a, b)
    assert meter.counts.multiply_adds == 300 * 200 * 100
    torch.testing.assert_close(found, a @ b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("lay", [
    lambda a: a, lambda a: a.t().contiguous().t(), lambda a: torch.cat([a, a], 1)[:, : a.shape[1]],
    lambda a: a[:, :1].expand(-1, a.shape[1]), lambda a: torch.cat([a, a])[::2][: len(a)],
])
def test_any_layout(lay):
    torch.manual_seed(0)
    x, weight, bias = torch.randn(40, 30), torch.randn(20, 30), torch.randn(20)
    for left, right in ((lay(x), weight), (x, lay(weight)), (lay(x), lay(weight))):
        torch.testing.assert_close(onednn_linear(left, right, bias), left @ right.t() + bias, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(onednn_linear(x.double(), weight.double()), x.double() @ weight.t().double())


def test_the_file_runs_where_torch_has_no_onednn(monkeypatch, tmp_path):
    model, X, y = wide()
    compiled = hbp.compile(model, quantities=QUANTITIES, example_inputs=(X, y))
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    namespace = {"__name__": "elsewhere"}
    exec(compile(compiled.code, "elsewhere.py", "exec"), namespace)
    assert namespace["onednn_linear"] is nn.functional.linear
    found = namespace["Program"]()(compiled.state, X, y)
    for key, value in compiled(X, y).diag_h.items():
        torch.testing.assert_close(found.diag_h[key], value, rtol=1e-4, atol=1e-6)
    again = hbp.compile(model, quantities=QUANTITIES, example_inputs=(X, y)).code
    assert "onednn" not in again


@pytest.mark.parametrize("between", [False, True])
def test_products_are_added_as_they_are_made_unless_something_happens_in_between(between):
    graph = fx.Graph()
    total, left, right = (graph.placeholder(name) for name in ("total", "left", "right"))
    product = graph.call_function(operator.matmul, (left, right))
    if between:
        graph.call_method("mul_", (left, 2))
    graph.output(graph.call_method("add_", (total, product)))
    for node, shape in ((total, ("2", "4")), (left, ("2", "3")), (right, ("3", "4")), (product, ("2", "4"))):
        node.meta = {"shape": shape, "dtype": torch.float64}
    write_in_place(graph)
    assert ("addmm_" in [node.target for node in graph.nodes]) != between
    a, b = torch.randn(2, 3, dtype=torch.float64), torch.randn(3, 4, dtype=torch.float64)
    expected = 1 + a @ b
    found = fx.GraphModule(nn.Module(), graph)(torch.ones(2, 4, dtype=torch.float64), a, b)
    torch.testing.assert_close(found, expected)

"""A of a convolution by the distance between window places: exact, and fewer multiply-adds."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.compiler.routes import ROUTES
from hbpcompiler.compiler.routes.factors import InputFactor
from hbpcompiler.compiler.routes.sliding import SlidingInputFactor
from tests.agreement import close
from tests.compiler.routes.sliding_windows import brute_force, multiply_adds, network, only
from tests.selection import few

NAME = SlidingInputFactor.name


@st.composite
def layers(draw):
    """A convolution with windows that slide, and its input."""
    axes = draw(st.integers(1, 3))
    kernel = [draw(st.integers(2, 4)), *(draw(st.integers(1, 2)) for _ in range(axes - 1))]
    dilation = [draw(st.integers(1, 2)) for _ in range(axes)]
    stride = [1, *(draw(st.integers(1, 2)) for _ in range(axes - 1))]
    same = all(step == 1 for step in stride) and draw(st.booleans())
    padding = "same" if same else [draw(st.integers(0, 1)) for _ in range(axes)]
    reach = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    size = [reach[0] + reach[0] + 1 + draw(st.integers(0, 2)), *(r + draw(st.integers(1, 2)) for r in reach[1:])]
    channels = draw(st.integers(1, 3))
    layer = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[axes - 1](channels, 2, kernel, stride, padding, dilation)
    torch.manual_seed(draw(st.integers(0, 99)))
    return layer.double(), torch.randn(draw(st.integers(1, 4)), channels, *size, dtype=torch.float64)


@given(layers(), st.sampled_from([None, 1]))
def test_random_convolutions(setting, chunk):
    layer, x = setting
    model = nn.Sequential(layer, nn.Flatten(), nn.LazyLinear(2)).double()
    model(x)
    limits = only(SlidingInputFactor, **({} if chunk is None else {"cache_bytes": chunk}))
    compiled = hbp.compile(model, quantities=["kflr"], limits=limits)
    found = compiled(x, torch.zeros(len(x), dtype=torch.long)).kflr["0.weight"].A
    assert NAME in compiled.code
    assert chunk is None or ".shape[0], 1):" in compiled.code
    expected = brute_force(layer, x)
    assert torch.allclose(found, expected, rtol=1e-10, atol=1e-10 * float(expected.abs().max()))
    close(found, found.T, "symmetry", expected)


def test_both_routes_agree_in_all_backends():
    model, X = network()
    y = torch.zeros(6, dtype=torch.long)
    model(X)
    found = []
    for route in (InputFactor, SlidingInputFactor):
        compiled = hbp.compile(model, quantities=["kflr"], example_inputs=(X, y), limits=only(route))
        assert (NAME in compiled.code) == (route is SlidingInputFactor)
        found.append(compiled(X, y).kflr["0.weight"].A)
        scripted = torch.jit.script(compiled.program)(compiled.state, X, y)
        close(scripted.kflr["0.weight"].A, found[-1], "scripted")
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-4 * float(found[0].abs().max()))


@few(2, "further cases of one kind")
@pytest.mark.parametrize(("kernel", "size"), [(2, 9), (3, 7), (3, 16), (5, 16)])
def test_it_needs_fewer_multiply_adds(kernel, size):
    """By its formula, which is what is counted, and by at least half the window."""
    counted, stated = multiply_adds((InputFactor, SlidingInputFactor), kernel, size)
    assert stated[0] > kernel / 2 * stated[1]
    assert counted[0] - counted[1] == stated[0] - stated[1]


@few(2, "further cases of one kind")
@pytest.mark.parametrize("options", [{"stride": 2}, {"groups": 2}, {"kernel": 1}, {"kernel": 9, "size": 14}])
def test_where_windows_do_not_slide_it_is_not_offered(options):
    """Strides skip rows, groups share none, and windows longer than the way they slide have no row in common."""
    model, X = network(**options)
    model(X)
    compiled = hbp.compile(model, quantities=["kflr"], example_inputs=(X, torch.zeros(6, dtype=torch.long)))
    assert NAME not in compiled.explain()


def test_it_is_chosen_where_it_pays():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(32, 16, 5, padding=2), nn.Flatten(), nn.Linear(16 * 196, 10))
    batch = torch.zeros(4, 32, 196), torch.zeros(4, dtype=torch.long)
    assert NAME in hbp.compile(model, quantities=["kfac"], example_inputs=batch).code
    assert any(isinstance(route, SlidingInputFactor) for route in ROUTES)

"""A of a convolution by pixels and their distances: exact, with fewer multiply-adds, float32 sums in parts."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.compiler.program.correlations import seen_alike, windows_gram
from hbpcompiler.compiler.routes.correlated import CorrelatedInputFactor
from hbpcompiler.compiler.routes.factors import InputFactor
from tests.agreement import close
from tests.compiler.routes.sliding_windows import brute_force, multiply_adds, network, only
from tests.selection import few

NAME = CorrelatedInputFactor.name


@st.composite
def layers(draw):
    """A convolution of two axes, whose first one's windows slide, and its input: also smaller than its window."""
    kernel = [draw(st.integers(2, 4)), draw(st.integers(1, 4))]
    dilation, padding = ([draw(st.integers(least, 3)) for _ in range(2)] for least in (1, 0))
    reach = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    size = [max(1, r + 1 - 2 * p + draw(st.integers(0, 4))) for r, p in zip(reach, padding, strict=True)]
    channels = draw(st.integers(1, 3))
    same = draw(st.booleans()) and all(r <= s for r, s in zip(reach, size, strict=True))
    torch.manual_seed(draw(st.integers(0, 99)))
    layer = nn.Conv2d(channels, 2, kernel, 1, "same" if same else padding, dilation)
    return layer.double(), torch.randn(draw(st.integers(1, 4)), channels, *size, dtype=torch.float64)


@given(layers())
def test_random_convolutions(setting):
    layer, x = setting
    model = nn.Sequential(layer, nn.Flatten(), nn.LazyLinear(2)).double()
    model(x)
    expected = brute_force(layer, x)
    before = layer.padding if layer.padding != "same" else [
        d * (k - 1) // 2 for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
    positions = list(layer(x).shape[2:])
    found = windows_gram(x, list(layer.kernel_size), list(layer.dilation), list(before), positions) / len(x)
    assert torch.allclose(found, expected, rtol=1e-10, atol=1e-10 * float(expected.abs().max()))
    close(found, found.T, "symmetry", expected)


@given(layers(), st.booleans())
def test_programs_of_random_convolutions(setting, are_weighted):
    """In float32, for which the route is."""
    layer, x = setting
    model = nn.Sequential(layer.float(), nn.Flatten(), nn.LazyLinear(2))
    model(x.float())
    compiled = hbp.compile(model, quantities=["kflr"], limits=only(CorrelatedInputFactor))
    weights = torch.arange(1.0, len(x) + 1) if are_weighted else None
    found = compiled(x.float(), torch.zeros(len(x), dtype=torch.long), sample_weights=weights).kflr["0.weight"].A
    assert NAME in compiled.code
    seen = x if weights is None else x * (weights * len(x) / weights.sum()).sqrt().double().reshape(-1, 1, 1, 1)
    expected = brute_force(layer.double(), seen)
    assert torch.allclose(found.double(), expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


def test_an_axis_is_cut_where_places_of_the_window_begin_and_end():
    assert seen_alike(8, 3, 1, 1, 8) == [(0, 1), (1, 7), (7, 8)]
    assert seen_alike(8, 3, 1, 0, 6) == [(0, 1), (1, 2), (2, 6), (6, 7), (7, 8)]
    assert seen_alike(2, 3, 2, 2, 2) == [(0, 2)]


@pytest.mark.parametrize("shape", [(256, 2, 32, 32), (1, 2, 500, 601)], ids=["many images", "a large image"])
def test_float32_sums_of_many_pixels_keep_their_digits(shape):
    """torch's kernel adds up one by one: of 256 images at once an entry would be off by 2e-5 of the largest."""
    torch.manual_seed(0)
    x = torch.randn(shape).relu_()
    arguments = [3, 3], [1, 1], [1, 1], list(shape[2:])
    found, exact = windows_gram(x, *arguments), windows_gram(x.double(), *arguments)
    assert (found - exact).abs().max() < 5e-6 * exact.abs().max()


def test_it_agrees_in_all_backends_and_layouts():
    model, X = network()
    y = torch.zeros(6, dtype=torch.long)
    model(X)
    expected = hbp.compile(model, quantities=["kflr"], limits=only(InputFactor))(X, y).kflr["0.weight"].A
    compiled = hbp.compile(model, quantities=["kflr"], example_inputs=(X, y), limits=only(CorrelatedInputFactor))
    assert NAME in compiled.code
    scripted = torch.jit.script(compiled.program)
    for found in (compiled(X, y), compiled(X.contiguous(memory_format=torch.channels_last), y),
                  scripted(compiled.state, X, y)):
        torch.testing.assert_close(found.kflr["0.weight"].A, expected, rtol=1e-4, atol=1e-5 * float(expected.max()))


def test_no_samples_make_zeros():
    assert torch.equal(windows_gram(torch.zeros(0, 2, 4, 4), [3, 3], [1, 1], [1, 1], [4, 4]), torch.zeros(18, 18))


@few(2, "further cases of one kind")
@pytest.mark.parametrize(("kernel", "size"), [(2, 9), (3, 7), (3, 16), (5, 16)])
def test_it_needs_fewer_multiply_adds(kernel, size):
    """By its formula, which is what is counted, and by a third of the window at least."""
    counted, stated = multiply_adds((InputFactor, CorrelatedInputFactor), kernel, size)
    assert stated[0] > kernel**2 / 3 * stated[1]
    assert counted[0] - counted[1] == stated[0] - stated[1]


@few(2, "further cases of one kind")
@pytest.mark.parametrize("options", [{"stride": 2}, {"groups": 2}, {"kernel": 1}])
def test_where_windows_do_not_slide_it_is_not_offered(options):
    model, X = network(**options)
    model(X)
    compiled = hbp.compile(model, quantities=["kflr"], example_inputs=(X, torch.zeros(6, dtype=torch.long)))
    assert NAME not in compiled.explain()


def test_in_double_precision_it_is_not_offered():
    model, X = network()
    model(X)
    compiled = hbp.compile(model.double(), quantities=["kflr"], limits=only(CorrelatedInputFactor),
                           example_inputs=(X.double(), torch.zeros(6, dtype=torch.long)))
    assert "windows_gram(" not in compiled.code


def test_it_is_chosen_where_it_pays():
    """Of many channels on few pixels nearly all is edges, and what is made is larger than what it saves."""
    torch.manual_seed(0)
    for channels, size, pays in ((32, 16, True), (512, 3, False)):
        model = nn.Sequential(nn.Conv2d(channels, 8, 3, padding=1), nn.Flatten(), nn.Linear(8 * size * size, 10))
        batch = torch.zeros(4, channels, size, size), torch.zeros(4, dtype=torch.long)
        assert (NAME in hbp.compile(model, quantities=["kfac"], example_inputs=batch).code) == pays

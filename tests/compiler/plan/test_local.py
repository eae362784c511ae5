"""Local support: columns of convolutions by neighbourhoods, exact for all paddings, strides, dilations and pools."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.compiler.cost.figures import Resources
from hbpcompiler.compiler.cost.meter import Meter
from hbpcompiler.compiler.plan.plan import plan
from hbpcompiler.compiler.plan.steps import LocalTail, SampleChunks, Widen, flat
from hbpcompiler.reference import reference
from tests.agreement import agree, close
from tests.selection import few, slow
from tests.stages import closings, matched, options

QUANTITIES = ["diag_h", "diag_ggn", "diag_h_split"]


def local_tails(compiled):
    return [step for step in compiled._current().draft.plan.steps if isinstance(step, LocalTail)]


class Plus(nn.Module):
    """x + f(x): two ways from one value, whose neighbourhoods differ."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return x + self.inner(x)


@st.composite
def spatial_networks(draw):
    """Curved activations between convolutions and pools, with all that these can be given, and a batch."""
    axes, channels = draw(st.integers(1, 3)), draw(st.sampled_from([1, 2]))
    side = {1: 12, 2: 7, 3: 5}[axes]
    convolution = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[axes - 1]
    max_pool, norm = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)[axes - 1], (nn.BatchNorm1d, nn.BatchNorm2d,
                                                                            nn.BatchNorm3d)[axes - 1]
    average_pool = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)[axes - 1]
    shape, layers = (channels, *[side] * (axes - 1), side - 1), []
    for _ in range(draw(st.integers(2, 3))):
        kernel = [draw(st.integers(1, 3)) for _ in range(axes)]
        dilation = [draw(st.integers(1, 2)) for _ in range(axes)]
        stride = [draw(st.integers(1, 2)) for _ in range(axes)]
        padding = draw(st.sampled_from(["same", "drawn"]))
        if padding == "same":
            stride = [1] * axes
        else:
            padding = [draw(st.integers(0, size)) for size in kernel]
        groups = draw(st.sampled_from([1, shape[0]]))
        outputs = groups * draw(st.integers(1, 2)) if groups > 1 else draw(st.integers(1, 2))
        new = [convolution(shape[0], outputs, kernel, stride, padding, dilation, groups)]
        if padding == "same" and outputs == shape[0] and draw(st.booleans()):
            new = [Plus(*new)]
        if draw(st.booleans()):
            new.append(norm(outputs))
        new.append(draw(st.sampled_from([nn.Sigmoid, nn.Tanh, nn.ELU, nn.ReLU]))())
        pool = draw(st.sampled_from(["max", "average", None]))
        if pool == "average":
            new.append(average_pool(2, draw(st.integers(1, 2)), draw(st.integers(0, 1)), draw(st.booleans()),
                                    draw(st.booleans())))
        elif pool == "max":
            new.append(max_pool(2, draw(st.integers(1, 2)), draw(st.integers(0, 1)), draw(st.integers(1, 2)),
                                ceil_mode=draw(st.booleans())))
        try:
            after = nn.Sequential(*new).double().eval()(torch.zeros(1, *shape, dtype=torch.float64))
        except (RuntimeError, ValueError):  # nothing would be left of the image
            continue
        if 0 < after.numel() <= 150 and after.isfinite().all():  # a pool may see nothing but padding
            layers, shape = [*layers, *new], tuple(after.shape[1:])
    seed, samples = draw(st.integers(0, 2**31)), draw(st.integers(1, 3))
    torch.manual_seed(seed)
    if draw(st.booleans()) or not layers:
        model, loss = nn.Sequential(*layers, nn.Flatten(), nn.Linear(math.prod(shape), 3)), nn.CrossEntropyLoss()
        y = torch.randint(3, (samples,))
    else:  # the loss's own diagonal widens too
        model, loss, y = nn.Sequential(*layers), nn.MSELoss(), torch.randn(samples, *shape, dtype=torch.float64)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    X = torch.randn(samples, channels, *[side] * (axes - 1), side - 1, dtype=torch.float64)
    return model.double().eval(), loss, X, y


@given(spatial_networks(), st.sampled_from([None, 1, 3]), st.booleans())
def test_random_networks(network, chunk, always):
    """With few and many positions in a chunk; also where whole images would have less to do."""
    model, loss, X, y = network
    limits = hbp.Limits(neighbourhood_work=math.inf if always else 1, recycled_bytes=2**24 if chunk is None else
                        chunk * 1000)
    result = hbp.compile(model, loss, QUANTITIES, example_inputs=(X, y), limits=limits)(X, y)
    agree(result, model, loss, [X], y, ("diag_h", "diag_ggn"))
    for key, parts in result.diag_h_split.items():
        close(parts.ggn + parts.positive - parts.negative, result.diag_h[key], f"split of {key}")
        assert (parts.positive >= 0).all()
        assert (parts.negative >= 0).all()


def network(size=12, between=nn.Sigmoid):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Sigmoid(), nn.Conv2d(4, 4, 3, padding=1), between(),
                          nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    return model, torch.randn(6, 1, size, size), torch.randint(3, (6,))


def test_what_each_position_costs_does_not_grow_with_the_image():
    adds = []
    for size in (12, 24):
        model, X, y = network(size)
        compiled = hbp.compile(model, quantities=["diag_h"], example_inputs=(X, y))
        (tail,) = local_tails(compiled)
        assert tail.piece.columns == 4
        assert tail.positions == (size, size)
        assert tail.places["sigmoid"].length == (3, 3)
        compiled(X, y)
        with Meter() as meter:
            compiled(X, y)
        adds.append(meter.counts.multiply_adds)
    assert adds[1] < 4.5 * adds[0]  # whole images would take 16 times as many


def test_memory_does_not_grow_with_the_columns():
    model, X, y = network(32)
    compiled = hbp.compile(model, quantities=["diag_h"], example_inputs=(X, y))
    whole_columns = 4 * 32 * 32 * 4 * 32 * 32 * 4
    assert local_tails(compiled)
    assert compiled.predicted_memory(1) < whole_columns / 2


@few(1, "further cases of one kind")
@pytest.mark.parametrize("options", [{"backend": "torchscript"}, {"memory_budget": "3MiB"}, {"autotune": True}],
                         ids=str)
def test_with_other_options(options, tmp_path, monkeypatch):
    monkeypatch.setenv("HBP_CACHE_DIR", str(tmp_path))
    model, X, y = (part.double() if i < 2 else part for i, part in enumerate(network()))
    compiled = hbp.compile(model, quantities=["diag_h"], example_inputs=(X, y), **options)
    assert local_tails(compiled)
    found = compiled(X, y).diag_h
    for key, value in reference(model, nn.CrossEntropyLoss(), [X], y, "diag_h").items():
        close(found[key], value, key)


def test_a_budget_below_one_position_takes_whole_images():
    model, X, y = network()
    found = matched(model, X, y, quantities=("diag_h",))
    for allowed, local in ((4 * 4 * 9 * 4, True), (4 * 4 * 9 * 4 - 1, False)):  # columns, channels, positions, bytes
        steps = plan(found, closings("diag_h"), options("diag_h"), Resources(temporaries=allowed)).steps
        (loop,) = (step for step in steps if isinstance(step, SampleChunks))
        assert any(isinstance(step, LocalTail) for step in loop.steps) == local


def test_one_program_serves_every_batch_size():
    model, X, y = network()
    model, X = model.double(), X.double()
    compiled = hbp.compile(model, quantities=["diag_h"], example_inputs=(X[:2], y[:2]))
    for size in (1, 5, 6):
        found = compiled(X[:size], y[:size]).diag_h
        for key, value in reference(model, nn.CrossEntropyLoss(), [X[:size]], y[:size], "diag_h").items():
            close(found[key], value, key)


def exact(model, loss, X, y, limits=None):
    """The compiled model, compared in all its Hessian diagonal."""
    model, X = model.double().eval(), X.double()
    compiled = hbp.compile(model, loss, ["diag_h"], example_inputs=(X, y), limits=limits)
    found = compiled(X, y).diag_h
    for key, value in reference(model, loss, [X], y, "diag_h").items():
        close(found[key], value, key)
    return compiled


class Residual(nn.Module):
    """x + f(x), or another meeting of the two, at every position; norms with parameters between."""

    def __init__(self, channels, meet=torch.add, kernel=3, dilation=1):
        super().__init__()
        pad = dilation * (kernel // 2)
        self.inner = nn.Sequential(nn.Conv2d(channels, channels, kernel, padding=pad, dilation=dilation),
                                   nn.BatchNorm2d(channels), nn.Tanh(),
                                   nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels))
        self.meet = meet

    def forward(self, x):
        return torch.sigmoid(self.meet(x, self.inner(x)))


def quotient(x, y):
    return x / (2 + torch.sigmoid(y))


def conv(inputs, outputs):
    return nn.Conv2d(inputs, outputs, 3, padding=1)


def ending(features):
    return nn.Sigmoid(), nn.Flatten(), nn.Linear(features, 3)


BEHIND_A_POOL = nn.Sequential(conv(1, 2), nn.Sigmoid(), nn.MaxPool2d(2), conv(2, 2), *ending(32))
OF_A_CONVOLUTION = nn.Sequential(conv(1, 2), conv(2, 2), *ending(128))
AVERAGES = nn.Sequential(nn.ConstantPad2d((1, 0, 2, 1), 0.5), nn.Conv2d(1, 2, 3), nn.Sigmoid(), nn.AvgPool2d(3, 2, 1),
                         conv(2, 2), nn.ZeroPad2d((0, 1, 1, 0)), nn.BatchNorm2d(2), nn.Tanh(), nn.AvgPool2d(2, 1),
                         *ending(40))


@few(1, "other windows")
@pytest.mark.parametrize("model", [
    BEHIND_A_POOL, OF_A_CONVOLUTION, AVERAGES,
    *[pytest.param(nn.Sequential(conv(1, 2), nn.Sigmoid(), Residual(2, meet, kernel), Residual(2, dilation=2),
                                 *ending(128)), marks=[] if kernel == 3 else slow("a window of one position"))
      for meet in (torch.add, torch.sub, torch.mul, quotient) for kernel in (1, 3)],
], ids=["behind a pool", "of a convolution", "averages", *[f"{name} {kernel}" for name in ("add", "sub", "mul", "div")
                                                          for kernel in (1, 3)]])  # fmt: skip
def test_all_pieces_by_neighbourhoods(model):
    """Zeros outside the image behind padded linear layers; ways that meet again; norms' parameters; pads and means."""
    # columns travel apart, as in large networks
    limits = hbp.Limits(neighbourhood_work=math.inf, spatial_bytes=0, few_columns=0)
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.bias.data, module.running_mean, module.running_var):
                tensor.uniform_(0.5, 1.5)
    compiled = exact(model, nn.CrossEntropyLoss(), torch.randn(2, 1, 8, 8), torch.tensor([0, 2]), limits)
    steps = [own for step in compiled._current().draft.plan.steps if not isinstance(step, LocalTail)
             for own in flat(step)]
    widened = [step for step in steps if isinstance(step, Widen) and len(step.operation.output.sample_shape) == 3]
    assert local_tails(compiled)
    assert not widened


class Positioned(nn.Module):
    """An embedding of positions between the convolutions."""

    def __init__(self, shape, trained):
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 2, 2, stride=2)
        self.head = nn.Linear(18, 3)
        numbers = 1 + 0.3 * torch.randn(shape)
        if trained:
            self.positions = nn.Parameter(numbers)
        else:
            self.register_buffer("positions", numbers)

    def forward(self, x):
        h = torch.tanh(self.first(x)) * self.positions
        return self.head(torch.tanh(self.second(torch.sigmoid(h))).flatten(1))


@few(1, "further cases of one kind")
@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("shape", [(1, 2, 6, 6), (6,), (1, 1, 6, 1), (2, 1, 1)])
def test_what_has_numbers_of_its_own_at_each_position(shape, trained):
    torch.manual_seed(0)
    model = Positioned(shape, trained).double()
    X, y = torch.randn(2, 1, 6, 6, dtype=torch.float64), torch.randint(3, (2,))
    limits = hbp.Limits(neighbourhood_work=math.inf, spatial_bytes=0, few_columns=0)
    compiled = exact(model, nn.CrossEntropyLoss(), X, y, limits)
    assert len(local_tails(compiled)) == (shape == (2, 1, 1) or not trained)


def test_whole_images_elsewhere():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Sigmoid(), nn.LayerNorm(6), nn.Sigmoid(), nn.Conv2d(2, 2, 3),
                          nn.Sigmoid(), nn.Flatten(), nn.Linear(32, 3))
    compiled = exact(model, nn.CrossEntropyLoss(), torch.randn(2, 1, 8, 8), torch.tensor([0, 2]))
    assert all("layer_norm" not in tail.places for tail in local_tails(compiled))


def test_kronecker_factors_keep_whole_images():
    """Their scale counts positions."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.Sigmoid(), nn.Conv2d(2, 2, 3, padding=1))
    X = torch.randn(2, 1, 6, 6)
    compiled = hbp.compile(model, nn.MSELoss(), ["kflr"], example_inputs=(X, torch.randn(2, 2, 6, 6)))
    assert not local_tails(compiled)
    assert local_tails(hbp.compile(model, nn.MSELoss(), ["diag_ggn"], example_inputs=(X, torch.randn(2, 2, 6, 6))))


def test_explained_per_sample_of_the_batch():
    model, X, y = network(12)
    compiled = hbp.compile(model, quantities=["diag_h"], example_inputs=(X, y))
    close_of_first = next(step for tail in local_tails(compiled) for step in tail.steps
                          if getattr(step, "parameter", None) is not None and step.parameter.key == "0.weight")
    assert close_of_first.site.pieces == 144
    assert "in chunks" in compiled.explain()


def test_curvature_in_a_dtype_of_its_own():
    model, X, y = network()
    model, X = model.double(), X.double()
    plain, rounded = (hbp.compile(model, quantities=["diag_h"], curvature_dtype=dtype, example_inputs=(X, y))
                      for dtype in (None, torch.float32))
    assert local_tails(rounded)
    found, expected = rounded(X, y).diag_h, plain(X, y).diag_h
    for key, value in expected.items():
        assert not torch.equal(found[key], value)
        torch.testing.assert_close(found[key], value, rtol=0, atol=1e-5 * float(value.abs().max()))

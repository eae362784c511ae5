"""Random chains of modules, batches and losses for hypothesis, small enough for brute force."""

import math

import torch
from hypothesis import assume
from hypothesis import strategies as st
from torch import nn

ACTIVATIONS = [
    nn.ReLU, lambda: nn.ReLU(inplace=True), lambda: nn.LeakyReLU(0.2), nn.ReLU6, nn.PReLU, nn.ELU, nn.SELU, nn.CELU,
    nn.GELU, lambda: nn.GELU(approximate="tanh"), nn.SiLU, nn.Mish, nn.Softplus, nn.Sigmoid, nn.LogSigmoid, nn.Tanh,
    nn.Hardtanh, nn.Hardswish, nn.Softsign, nn.Identity, lambda: nn.Dropout(0.4),
]


class Chain(nn.Sequential):
    """A Sequential whose repr names what hypothesis drew."""


def _shape_after(layers, shape):
    with torch.no_grad():
        return tuple(nn.Sequential(*layers).eval()(torch.zeros(2, *shape, dtype=torch.float64)).shape[1:])


def _activation(draw):
    return draw(st.sampled_from(ACTIVATIONS))()


@st.composite
def dense_chains(draw):
    """Linear layers on [N, features] or [N, positions, features]."""
    width = draw(st.integers(1, 4))
    positions = draw(st.sampled_from([(), (), (2,), (2, 2)]))
    shape = (*positions, width)
    layers = []
    for _ in range(draw(st.integers(0, 2))):
        out = draw(st.integers(1, 4))
        layers += [nn.Linear(width, out, bias=draw(st.booleans())), _activation(draw)]
        width = out
    if positions:
        layers.append(nn.Flatten())
        width *= math.prod(positions)
    return layers, shape, width


@st.composite
def spatial_chains(draw):
    """Convolutions, transposed convolutions, pools, batch norms and pads in one, two or three dimensions."""
    dim = draw(st.integers(1, 3))
    side = {1: 7, 2: 5, 3: 4}[dim]
    channels = draw(st.sampled_from([1, 2]))
    shape = (channels, *[side] * dim)
    layers = []
    current = shape
    for _ in range(draw(st.integers(1, 3))):
        kind = draw(st.sampled_from(["conv", "conv", "transposed", "max", "avg", "adaptive", "norm", "pad"]))
        layer = _spatial_layer(draw, kind, dim, current)
        if layer is None:
            continue
        after = _shape_after([layer.double()], current)
        if math.prod(after) > 150 or 0 in after:
            continue
        layers.append(layer)
        current = after
        if draw(st.booleans()):
            layers.append(_activation(draw))
    layers.append(nn.Flatten())
    return layers, shape, math.prod(current)


def _spatial_layer(draw, kind, dim, shape):
    channels, smallest = shape[0], min(shape[1:])
    if kind == "conv":
        groups = draw(st.sampled_from([1, channels]))
        kernel = draw(st.integers(1, min(3, smallest)))
        padding = draw(st.sampled_from([0, 1, "same"]))
        stride = 1 if padding == "same" else draw(st.integers(1, 2))
        dilation = draw(st.integers(1, 2)) if kernel * 2 - 1 <= smallest else 1
        cls = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dim - 1]
        return cls(channels, groups * draw(st.integers(1, 2)), kernel, stride, padding, dilation, groups,
                   bias=draw(st.booleans()))
    if kind == "transposed":
        groups = draw(st.sampled_from([1, channels]))
        stride = draw(st.integers(1, 2))
        cls = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[dim - 1]
        return cls(channels, groups, draw(st.integers(1, 2)), stride, draw(st.integers(0, 1)) if smallest > 2 else 0,
                   draw(st.integers(0, stride - 1)), groups)
    if kind == "norm":
        norm = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[dim - 1](channels)
        with torch.no_grad():
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
            norm.weight.normal_()
        return norm
    if kind == "pad":
        cls = (nn.ConstantPad1d, nn.ZeroPad2d if draw(st.booleans()) else nn.ConstantPad2d, nn.ConstantPad3d)[dim - 1]
        sides = tuple(draw(st.integers(0, 1)) for _ in range(2 * dim))
        return cls(sides) if cls is nn.ZeroPad2d else cls(sides, 0.5)
    if smallest < 2:
        return None
    if kind == "max":
        cls = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)[dim - 1]
        return cls(2, draw(st.integers(1, 2)), draw(st.integers(0, 1)), ceil_mode=draw(st.booleans()))
    if kind == "avg":
        cls = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)[dim - 1]
        return cls(2, draw(st.integers(1, 2)), draw(st.integers(0, 1)), ceil_mode=draw(st.booleans()),
                   count_include_pad=draw(st.booleans()))
    cls = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)[dim - 1]
    return cls(draw(st.integers(1, 2)))


@st.composite
def losses(draw, classes, samples, generator):
    """A loss and a target for outputs [N, classes]."""
    reduction = draw(st.sampled_from(["mean", "sum"]))
    kind = draw(st.sampled_from(["index", "weighted", "soft", "mse", "bce", "poisson", "huber"]))

    def rand(*shape):
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    if kind in ("index", "weighted"):
        target = torch.randint(0, classes, (samples,), generator=generator)
        options = {"reduction": reduction}
        if kind == "weighted":
            options |= {"weight": rand(classes) + 0.5, "label_smoothing": draw(st.sampled_from([0.0, 0.2]))}
            if samples > 1 and draw(st.booleans()):
                target[0] = -100
        return nn.CrossEntropyLoss(**options), target
    if kind == "soft":
        return nn.CrossEntropyLoss(reduction=reduction, label_smoothing=0.1), rand(samples, classes).softmax(1)
    if kind == "mse":
        return nn.MSELoss(reduction=reduction), rand(samples, classes)
    if kind == "bce":
        return nn.BCEWithLogitsLoss(reduction=reduction, pos_weight=rand(classes) + 0.5), rand(samples, classes).round()
    if kind == "poisson":
        return nn.PoissonNLLLoss(reduction=reduction), (4 * rand(samples, classes)).floor()
    return nn.HuberLoss(reduction=reduction, delta=0.5), rand(samples, classes)


@st.composite
def settings_of(draw, chains):
    """(model, loss, X, y), float64, some parameters frozen, in train or eval mode."""
    seed = draw(st.integers(0, 2**16))
    assume(seed)  # the first example has all draws at their least and says little
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    layers, shape, width = draw(chains)
    classes = draw(st.integers(1, 4))
    model = Chain(*layers, nn.Linear(width, classes)).double()
    model.train(draw(st.booleans()))
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
    if draw(st.booleans()):
        for parameter in list(model.parameters())[: draw(st.integers(0, 2))]:
            parameter.requires_grad_(False)
        if not any(parameter.requires_grad for parameter in model.parameters()):
            model[-1].weight.requires_grad_(True)
    samples = draw(st.integers(1, 4))
    X = torch.randn(samples, *shape, generator=generator, dtype=torch.float64)
    loss, y = draw(losses(classes, samples, generator))
    return model, loss, X, y


class Shifted(nn.Module):
    """A function of values that a parameter moves."""

    def __init__(self, function):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(3, dtype=torch.float64))
        self.function = function

    def forward(self, x):
        return self.function(x + self.bias)

"""The functional and method spellings of what has a module: one program each, first and second order checked."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.reference import reference
from tests.agreement import agree, close
from tests.selection import few, slow

FLAT = {
    "torch.relu": torch.relu, "F.relu": F.relu, "x.relu()": lambda x: x.relu(), "x.relu_()": lambda x: x.relu_(),
    "F.relu inplace": lambda x: F.relu(x, inplace=True), "F.leaky_relu": lambda x: F.leaky_relu(x, 0.3),
    "F.relu6": F.relu6, "F.elu": F.elu, "F.selu": F.selu, "F.celu": F.celu, "F.gelu": F.gelu,
    "F.gelu tanh": lambda x: F.gelu(x, approximate="tanh"), "F.silu": F.silu, "F.mish": F.mish,
    "F.softplus": F.softplus, "torch.sigmoid": torch.sigmoid, "x.sigmoid()": lambda x: x.sigmoid(),
    "F.sigmoid": F.sigmoid, "F.logsigmoid": F.logsigmoid, "torch.tanh": torch.tanh, "x.tanh()": lambda x: x.tanh(),
    "F.hardtanh": F.hardtanh, "F.hardswish": F.hardswish, "F.softsign": F.softsign, "F.tanhshrink": F.tanhshrink,
    "torch.exp": torch.exp, "x ** 2": lambda x: x**2, "x * 2 + 1": lambda x: x * 2 + 1, "-x": lambda x: -x,
    "x.square()": lambda x: x.square(), "by hand": lambda x: x * torch.sigmoid(1.7 * x),
}
IMAGE = {
    "F.max_pool2d": lambda x: F.max_pool2d(x, 2), "F.avg_pool2d": lambda x: F.avg_pool2d(x, 2),
    "F.adaptive_avg_pool2d": lambda x: F.adaptive_avg_pool2d(x, 2), "F.pad": lambda x: F.pad(x, (1, 0, 0, 1)),
    "F.adaptive_max_pool2d": lambda x: F.adaptive_max_pool2d(x, 2), "x.flatten(1)": lambda x: x.flatten(1),
    "torch.flatten": lambda x: torch.flatten(x, 2), "x.view": lambda x: x.view(x.shape[0], -1),
    "x.view(-1)": lambda x: x.view(-1, 32), "x.reshape": lambda x: x.reshape(x.size(0), 8, 4),
    "x.permute": lambda x: x.permute(0, 2, 3, 1), "x.transpose": lambda x: x.transpose(1, 3),
    "x.mT": lambda x: x.mT, "unflatten": lambda x: x.flatten(1).unflatten(1, (4, 8)),
    "F.dropout off": lambda x: F.dropout(x, 0.5, training=False), "x.mean": lambda x: x.mean((2, 3)),
    "squeeze": lambda x: x.unsqueeze(1).squeeze(1), "contiguous": lambda x: x.transpose(1, 2).contiguous(),
}


class Spelled(nn.Module):
    """Each function of a layer of its own, beside the others."""

    def __init__(self, first, functions):
        super().__init__()
        self.functions = functions
        shape = (2, 1, 5, 5) if first is nn.Conv2d else (2, 3)
        sizes = (1, 2, 2) if first is nn.Conv2d else (3, 4)
        self.first = nn.ModuleList(first(*sizes) for _ in functions)
        self.last = nn.Linear(self.parts(torch.zeros(shape)).shape[1], 2)

    def parts(self, x):
        return torch.cat([function(layer(x)).flatten(1)
                          for function, layer in zip(self.functions, self.first, strict=True)], 1)

    def forward(self, x):
        return self.last(self.parts(x))


def eights(table):
    """Its names, eight at a time: a compile takes longer than what it is about."""
    names = list(table)
    return [names[start : start + 8] for start in range(0, len(names), 8)]


@few(1, "other losses")
@pytest.mark.parametrize("names", [*eights(FLAT), *eights(IMAGE)], ids=", ".join)
def test_spellings(names):
    torch.manual_seed(0)
    image = names[0] in IMAGE
    table = IMAGE if image else FLAT
    model = Spelled(nn.Conv2d if image else nn.Linear, [table[name] for name in names]).double()
    X = torch.randn(2, 1, 5, 5, dtype=torch.float64) if image else torch.randn(3, 3, dtype=torch.float64)
    y = torch.tensor([0, 1, 1])[: len(X)]
    result = hbp.compile(model, quantities=["grad", "diag_h"])(X, y)
    for quantity in ("grad", "diag_h"):
        for key, value in reference(model, nn.CrossEntropyLoss(), [X], y, quantity).items():
            close(result[quantity][key], value, f"{quantity} of {key}, {names}")


class Shifted(nn.Module):
    """A parameter that is added other than once, with an activation's diagonal residual right above."""

    def __init__(self, shift, shape):
        super().__init__()
        self.first, self.last, self.shift = nn.Linear(3, 4), nn.Linear(4, 2), shift
        self.own = nn.Parameter(torch.randn(shape))

    def forward(self, x):
        return self.last(torch.sigmoid(self.shift(self.first(x), self.own)))


SHIFTS = {
    "x - p": lambda x, p: x - p, "p - x": lambda x, p: p - x, "x + 2 p": lambda x, p: torch.add(x, p, alpha=2),
    "x - 3 p": lambda x, p: torch.sub(x, p, alpha=3), "3 x - p": lambda x, p: torch.rsub(p, x * 3),
}


@few(3, "further cases of one kind")
@pytest.mark.parametrize(("name", "shape"), [
    pytest.param(name, shape, marks=[] if shape == (4,) or name == "p - x" else slow("broadcasting is alike for all"))
    for name in SHIFTS for shape in ((4,), (1,), ())])
def test_a_parameter_that_is_subtracted(name, shape):
    torch.manual_seed(0)
    model = Shifted(SHIFTS[name], shape).double()
    X, y = torch.randn(3, 3, dtype=torch.float64), torch.tensor([0, 1, 1])
    result = hbp.compile(model, quantities=["grad", "variance", "diag_h"])(X, y)
    agree(result, model, nn.CrossEntropyLoss(), [X], y)


def test_a_weight_and_a_bias_that_are_scaled_by_addmm():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.bias = nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.randn(4))
            self.last = nn.Linear(4, 2)

        def forward(self, x):
            return self.last(torch.tanh(torch.addmm(self.bias, x, self.weight, beta=-2, alpha=0.5)))

    torch.manual_seed(0)
    model = Scaled().double()
    X, y = torch.randn(3, 3, dtype=torch.float64), torch.tensor([0, 1, 1])
    found = hbp.compile(model, quantities=["diag_h"])(X, y).diag_h
    for key, value in reference(model, nn.CrossEntropyLoss(), [X], y, "diag_h").items():
        close(found[key], value, key)


def test_functional_layers():
    """Parameters of one's own, used by F.linear, F.conv2d and F.batch_norm."""
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.kernel = nn.Parameter(torch.randn(2, 1, 3, 3))
            self.scale, self.shift = nn.Parameter(torch.randn(2)), nn.Parameter(torch.randn(2))
            self.weight, self.bias = nn.Parameter(torch.randn(2, 32)), nn.Parameter(torch.randn(2))
            self.register_buffer("mean", torch.randn(2))
            self.register_buffer("var", torch.rand(2) + 0.5)

        def forward(self, x):
            x = F.batch_norm(F.conv2d(x, self.kernel), self.mean, self.var, self.scale, self.shift, training=False)
            return F.linear(torch.tanh(x).flatten(1), self.weight, self.bias)

    torch.manual_seed(0)
    model = Own().double()
    X, y = torch.randn(2, 1, 6, 6, dtype=torch.float64), torch.tensor([0, 1])
    result = hbp.compile(model, quantities=["grad", "variance", "diag_h"])(X, y)
    agree(result, model, nn.CrossEntropyLoss(), [X], y, ("grad", "diag_h"))

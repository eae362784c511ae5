"""Convolutions whose windows slide, and their A by brute force: for tests of the routes that make it by distances."""

import torch
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.compiler.cost.figures import number
from hbpcompiler.compiler.cost.meter import Meter


def only(route, **others):
    """This route is taken wherever it can be."""
    return hbp.Limits(route_times=((route.name, 0),), **others)


def brute_force(layer, x):
    """Patches as a convolution with one-hot kernels sees them: A = sum of u u^T over samples and positions."""
    weight = layer.weight
    count = weight[0].numel()
    units = torch.eye(count, dtype=x.dtype).reshape(count, *weight.shape[1:])
    see = (nn.functional.conv1d, nn.functional.conv2d, nn.functional.conv3d)[weight.dim() - 3]
    seen = see(x, units, None, layer.stride, layer.padding, layer.dilation).flatten(2)
    return torch.einsum("nip,njp->ij", seen, seen) / len(x)


def network(kernel=3, channels=8, size=16, stride=1, groups=1):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(channels, channels, kernel, stride, padding=1, groups=groups), nn.Flatten(),
                         nn.LazyLinear(2)), torch.randn(6, channels, size, size)


def multiply_adds(routes, kernel, size):
    """Of A by each of these routes: those that are counted as the program runs, and those that its cost states."""
    model, X = network(kernel, 8, size)
    y = torch.zeros(6, dtype=torch.long)
    model(X)
    counted, stated = [], []
    for route in routes:
        compiled = hbp.compile(model, quantities=["kflr"], example_inputs=(X, y), limits=only(route))
        (step,) = (step for step in compiled._current().draft.plan.closings()
                   if step.piece is None and step.parameter.key == "0.weight")
        (choice,) = step.choices
        assert type(choice.route) is route
        stated.append(number(choice.cost.multiply_adds, 6))
        with torch.no_grad(), Meter() as meter:
            compiled.program(compiled.state, X, y)
        counted.append(meter.counts.multiply_adds)
    return counted, stated

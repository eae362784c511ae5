"""Convolutions whose windows slide, and their A by brute force: for tests of the routes that make it by distances."""

import torch
from torch import nn

import hbpcompiler as hbp


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

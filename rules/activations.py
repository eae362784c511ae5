"""Activations: one sympy expression each, from which the compiler derives y' and y''."""

import torch
import torch.nn.functional as F

from hbpcompiler.elementwise import Piecewise, attribute, elementwise, normal_cdf, sigmoid, softplus, sympy, x, y

RELU = elementwise(
    "aten.relu",
    Piecewise((x, x > 0), (0, True)),
    first=Piecewise((1, y > 0), (0, True)),  # in terms of the output: the input need not be kept
    forward=lambda op: F.relu(op.self),
)
SIGMOID = elementwise("aten.sigmoid", sigmoid(x), forward=lambda op: torch.sigmoid(op.self))
TANH = elementwise("aten.tanh", sympy.tanh(x), forward=lambda op: torch.tanh(op.self))
SILU = elementwise("aten.silu", x * sigmoid(x), forward=lambda op: F.silu(op.self))

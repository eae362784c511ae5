"""Operations and functions of a user's own, which the library cannot know, and modules that use them."""

import torch
from torch import Tensor, nn


@torch.library.custom_op("hbptests::swirl", mutates_args=())
def swirl(self: Tensor) -> Tensor:
    return self + self.sin().square()


@swirl.register_fake
def _(self):
    return torch.empty_like(self)


def _keep(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _backward(ctx, gradient):
    return gradient * (1 + (2 * ctx.saved_tensors[0]).sin())


swirl.register_autograd(_backward, setup_context=_keep)  # the reference differentiates the operation itself


@torch.library.custom_op("hbptests::knot", mutates_args=())
def knot(self: Tensor) -> Tensor:
    return self.cos()


@knot.register_fake
def _(self):
    return torch.empty_like(self)


@torch.library.custom_op("hbptests::centred", mutates_args=())
def centred(self: Tensor) -> Tensor:
    return self - self.mean(0)


@centred.register_fake
def _(self):
    return torch.empty_like(self)


centred.register_autograd(lambda ctx, gradient: gradient - gradient.mean(0))


@torch.library.custom_op("hbptests::count", mutates_args=("calls",))
def count(calls: Tensor) -> None:
    calls.add_(1)


class Swirl(nn.Module):
    def forward(self, x):
        return torch.ops.hbptests.swirl(x)


class Centred(nn.Module):
    def forward(self, x):
        return torch.ops.hbptests.centred(x)


class Knot(nn.Module):
    def forward(self, x):
        return torch.ops.hbptests.knot(x)


SWIRL_RULE = '''
from hbpcompiler.elementwise import elementwise, sympy, x

SWIRL = elementwise("hbptests.swirl", x + sympy.sin(x) ** 2, forward=lambda op: op.self + op.self.sin().square())
'''


class Doubled(torch.autograd.Function):
    """The identity, whose backward doubles slopes: no derivative of it. Without forward-mode derivative and vmap."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, slope):
        return 2 * slope

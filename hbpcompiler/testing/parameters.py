"""What a rule says about parameters: the contraction, torch's kernel for it, and the patches that it meets."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from hbpcompiler.rule import Contraction, Op, Rule, pad_axes, patches
from hbpcompiler.testing.brute_force import pull_back
from hbpcompiler.testing.compare import close
from hbpcompiler.testing.setting import Setting


def check_parameter(rule: Rule, setting: Setting, op: Op, name: str, columns: Tensor, where: str) -> None:
    """The contraction of one parameter against autograd, on these columns at the output."""
    contraction = rule.params(op)[name]
    operands = [contraction.columns(op, columns)]
    if contraction.operand is not None:
        operands.append(contraction.operand(op))
    try:
        result = torch.einsum(contraction.equation, operands)
    except RuntimeError as error:
        shapes = " and an operand ".join(str(list(operand.shape)) for operand in operands)
        raise AssertionError(f"{where}: contraction of {name}: {contraction.equation!r} does not fit columns {shapes}: "
                             f"{error}") from error
    expected = pull_back(setting, name, columns)
    close(result.reshape(expected.shape), expected, f"{where}: contraction of {name}")
    units = torch.eye(math.prod(op.shape("output")), dtype=torch.float64).expand(setting.samples, -1, -1)
    seen = contraction.columns(op, units.reshape(setting.samples, -1, *op.shape("output")))
    assert ((seen == 0) | (seen == 1)).all(), f"{where}: columns of {name} have coefficients other than 0 and 1"
    if contraction.index is not None:
        index = contraction.index(op)
        rows = F.one_hot(index.clamp(min=0), operands[1].shape[-1]) * (index >= 0).unsqueeze(-1)
        close(rows.to(operands[1]), operands[1], f"{where}: where the unit vectors that {name} meets have their ones")
    if contraction.product is not None:
        close(contraction.product(op, columns), result, f"{where}: product of {name}")
    if contraction.kernel is not None:
        close(contraction.kernel(op, columns[:, 0]), expected[:, 0].sum(0), f"{where}: kernel of {name}")
    if rule.window(op) is not None and contraction.has_kernel_for_columns:
        one = op.bound_again(lambda tensor, batched: tensor[:1] if batched else tensor)
        close(contraction.of_sample(one, name, columns[:1]), expected[0], f"{where}: kernel of {name}, many columns")
    _check_patches(rule, contraction, op, f"{where}: the patches that {name} meets")


def _check_patches(rule: Rule, contraction: Contraction, op: Op, where: str) -> None:
    """At an operation with a window the operand is what the windows see of its one input with samples."""
    window = rule.window(op)
    if window is None or contraction.operand is None:
        return
    (name,) = op.sampled()
    after = window.after(op.shape(name)[1:], op.shape("output")[1:])
    padded = pad_axes(getattr(op, name), window.before, after, window.fill)
    seen = patches(padded, window.size, window.stride, window.dilation)
    operand = contraction.operand(op)
    close(operand.flatten(1, -2), seen, where)  # groups of channels may be apart

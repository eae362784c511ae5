"""What a rule declares of an operation's Jacobian: its structure, and the window that outputs read."""

from __future__ import annotations

import torch
from torch import Tensor

from hbpcompiler.rule import Op, Rule, Structure
from hbpcompiler.testing.brute_force import pull_back
from hbpcompiler.testing.compare import close, flat
from hbpcompiler.testing.setting import SAMPLES, Setting


def check_structure(rule: Rule, setting: Setting, op: Op, where: str) -> None:
    structure = rule.structure_of(op)
    if structure is Structure.GENERAL:
        return
    for name, i in setting.inputs(setting.active()):
        size = int(torch.tensor(op.shape("output")).prod())
        unit = torch.eye(size, dtype=torch.float64).reshape(1, size, *op.shape("output"))
        rows = flat(pull_back(setting, name, unit.expand(SAMPLES, *unit.shape[1:]), i))
        if structure is Structure.SELECTION:
            assert ((rows == 0) | (rows == 1)).all(), f"{where}: coefficients other than 0 and 1"
            assert ((rows != 0).sum(-1) <= 1).all(), f"{where}: no selection"
            if (index := rule.selected(op)) is not None:
                close(_copying(index, rows.shape[2]), rows, f"{where}: what a Selection copies")
        if structure is Structure.CONSTANT:
            close(rows[:1].expand_as(rows), rows, f"{where}: the Jacobian differs between samples")
        if structure is Structure.ELEMENTWISE:
            assert rule.derivative is not None
            close(torch.diag_embed(rule.derivative(op).reshape(SAMPLES, -1)), rows, f"{where}: derivative")


def _copying(index: Tensor, size: int) -> Tensor:
    """The Jacobian [N, c * out, c * in] of outputs that copy these inputs [N, c, out] of their channel."""
    channels = index.shape[1]
    copies = torch.nn.functional.one_hot(index, size // channels).double()  # [N, c, out, in]
    apart = torch.eye(channels, dtype=torch.float64)
    return torch.einsum("ncpi,cd->ncpdi", copies, apart).flatten(3).flatten(1, 2)


def check_window(rule: Rule, setting: Setting, op: Op, where: str) -> None:
    """The same operation, unpadded, makes all outputs of the padded input, and the last of the piece that they read."""
    window = rule.window(op)
    if window is None:
        return
    case, arguments = setting.case, setting.arguments
    names = [slot for slot in case.shapes if setting.batched(slot)]
    attributes = {slot: value for slot, value in arguments.items() if slot not in case.shapes}
    outer, inner = op.shape("output")[1:], op.shape(names[0])[1:]
    for skipped in (0, 1):
        amounts: list[int] = []
        for axis, (size, length) in enumerate(zip(inner, outer, strict=True)):
            kept, stride = max(length - skipped, 1), window.stride[axis]
            first = (length - kept) * stride - window.before[axis]
            last = first + (kept - 1) * stride + window.dilation[axis] * (window.size[axis] - 1) + 1
            amounts = [-first, last - size, *amounts]
        pieces = {name: torch.nn.functional.pad(getattr(op, name), amounts, value=window.fill) for name in names}
        shapes = {name: tuple(piece.shape[1:]) for name, piece in pieces.items()}
        assert rule.forward is not None
        made = rule.forward(Op({**arguments, **pieces}, {**attributes, **window.unpadded},
                               {**case.shapes, **shapes}, index=case.index, differentiated=False))
        kept_output = op.output[(..., *(slice(-max(length - skipped, 1), None) for length in outer))]
        close(made, kept_output, f"{where}: window, {skipped} outputs left out")

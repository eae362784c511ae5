"""Functions that a generated file defines for itself if its program calls them: there they stand as they stand here."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any, Optional

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from hbpcompiler.writer import Loop


def onednn_linear(x: Tensor, weight: Tensor, bias: Optional[Tensor] = None) -> Tensor:  # noqa: UP045  # for TorchScript
    """F.linear by oneDNN, which multiplies float32 matrices faster than BLAS on many processors."""
    compiling = False if torch.jit.is_scripting() else torch.compiler.is_compiling()  # type: ignore[attr-defined]  # untyped
    if compiling or not (x.is_cpu or x.is_meta) or x.dtype != torch.float32:
        return F.linear(x, weight, bias)
    if not weight.is_contiguous() and not weight.t().is_contiguous():
        weight = weight.contiguous()  # oneDNN is slow where rows lie apart in memory
    return torch.ops.mkldnn._linear_pointwise(x.contiguous(), weight, bias, "none", [], "")


FALLBACKS: dict[Callable[..., Any], str] = {
    onednn_linear: "if not torch.backends.mkldnn.is_available():\n    onednn_linear = F.linear",
}
"""Helper -> what follows its definition, for builds of torch that cannot run it."""


def has_onednn(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether `onednn_linear` is more than F.linear there."""
    return device.type == "cpu" and dtype is torch.float32 and torch.backends.mkldnn.is_available()


def definitions(graph: fx.Graph) -> list[str]:
    """The text of each helper that the graph calls."""
    texts = []
    for helper in dict.fromkeys(_called(graph)):
        texts += [re.sub(r"  # (noqa|type): .*", "", inspect.getsource(helper)).rstrip(), FALLBACKS[helper]]
    return texts


def _called(graph: fx.Graph) -> Iterator[Any]:
    for node in graph.nodes:
        if isinstance(node.target, Loop):
            yield from _called(node.target.body)
        elif node.target in FALLBACKS:
            yield node.target

"""What torch says of shapes, of many operations at once where it goes through a dozen others for one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from hbpcompiler.rules.shared.quick_shapes import QUICK
from hbpcompiler.rules.shared.torch_operations import MISREAD

OFTEN = 8
"""So many parameters of one shape, on average, make a model of layers that are alike."""


@contextmanager
def right_shapes(model: nn.Module) -> Iterator[None]:
    """Meanwhile torch infers some shapes otherwise than by its table of decompositions.

    That of nll_loss, and so of cross_entropy, from what it does: the table reads the number for reduction="none" as
    another argument's, and takes the result for one number. Those that QUICK has from their arguments': the table's way
    takes a third of the time that the export of a small network or of a DenseNet does. What calls make is kept, for
    others that are alike, only in models that have many (BERT's twelve layers): to keep it takes another third.
    """
    from torch._dynamo.config import patch  # a second, and half of what importing this library would take

    table = torch._decomp.decomposition_table
    known: dict[Any, Any] = {overload: table.pop(overload) for overload in (MISREAD, *QUICK) if overload in table}
    table.update({overload: shaped(known[overload]) for overload, shaped in QUICK.items() if overload in known})
    try:
        with nullcontext() if _has_alike_layers(model) else patch(fake_tensor_cache_enabled=False):
            yield
    finally:
        table.update(known)


def _has_alike_layers(model: nn.Module) -> bool:
    shapes = [parameter.shape for parameter in model.parameters()]
    return len(shapes) >= OFTEN * max(1, len(set(shapes)))

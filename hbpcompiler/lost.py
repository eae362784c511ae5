"""Derivatives that are no numbers on a batch of which the model's own gradient is one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from hbpcompiler.errors import InputError
from hbpcompiler.quantities import QUANTITIES
from hbpcompiler.quantities.vocabulary import RESIDUAL, RESIDUAL_MC

SECOND_ORDER = frozenset({RESIDUAL, RESIDUAL_MC})
NO_NUMBER = ("{where} is not a number on this batch, on which the model's own gradient is finite: a value is exactly "
             "where the slope of an operation that it goes through is infinite (0 for a logarithm or a root), and a "
             "program's products with it have no value there. Keep such values away from it, as in x.clamp(min=1e-12) "
             "or log(x + 1e-12)")


def refuse_lost(raw: Any, quantities: Sequence[str], gradients: Callable[[], Mapping[str, Tensor]]) -> None:
    """InputError where a quantity of first derivatives is NaN, and `gradients`, the model's own, are finite. Second
    derivatives may have no value where first ones have."""
    for name in quantities:
        if any(closing.stream in SECOND_ORDER for closing in QUANTITIES[name].needs):
            continue
        for where, tensor in _tensors(getattr(raw, name), name):
            if tensor.is_floating_point() and bool(tensor.isnan().any()):
                if all(bool(own.isfinite().all()) for own in gradients().values()):
                    raise InputError(NO_NUMBER.format(where=where))
                return


def _tensors(held: Any, where: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(held, Tensor):
        yield where, held
    elif isinstance(held, Mapping):
        for key, item in held.items():
            yield from _tensors(item, f"{where} of {key!r}")
    elif isinstance(held, tuple | list):
        for item in held:
            yield from _tensors(item, where)

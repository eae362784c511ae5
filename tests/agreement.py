"""What tests compare results with: numbers by brute force, to rounding."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from hbpcompiler.reference import reference


def close(found: Tensor, expected: Tensor, what: str, scale: Tensor | None = None) -> None:
    """Equal to 1e-8 of the largest number; `scale` has it where the expected one is a difference of larger ones."""
    assert found.shape == expected.shape, f"{what}: {tuple(found.shape)} instead of {tuple(expected.shape)}"
    assert found.dtype == expected.dtype
    scale = 1e-6 + (expected if scale is None else scale).abs().max()
    error = ((found - expected).abs().max() / scale).item()
    assert error < 1e-8, f"{what}: relative error {error:.1e}"


def agree(result: Mapping[str, Any], model: nn.Module, loss: Any, inputs: Sequence[Tensor], y: Any,
          quantities: Iterable[str] | None = None) -> None:
    """That these quantities, or all that there are, are autograd's for each parameter."""
    asked = list(result if quantities is None else quantities)
    assert asked
    for quantity in asked:
        for name, value in reference(model, loss, inputs, y, quantity).items():
            close(result[quantity][name], value, f"{quantity} of {name}")

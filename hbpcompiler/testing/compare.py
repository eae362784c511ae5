"""How results are compared: exactly, but for float64 rounding."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from hbpcompiler.rule import Diagonal, Factor, Op, Residual, Zero
from hbpcompiler.testing.setting import SAMPLES


def close(found: Any, expected: Tensor, where: str) -> None:
    assert isinstance(found, Tensor), f"{where}: {found!r}, which is no tensor"
    assert found.shape == expected.shape, f"{where}: shape {tuple(found.shape)}, not {tuple(expected.shape)}"
    assert found.dtype == expected.dtype, f"{where}: dtype {found.dtype}, not {expected.dtype}"
    error = (found - expected).abs().max().item() if found.numel() else 0.0
    scale = 1 + (expected.abs().max().item() if expected.numel() else 0.0)
    assert error <= 1e-9 * scale, f"{where}: {_how_far(found, expected, error)}"


def _how_far(found: Tensor, expected: Tensor, error: float) -> str:
    """What is wrong with numbers of which one at least is: that it is none at all comes first."""
    if math.isfinite(error):
        return f"off by {error:.2e}"
    place = (~(found - expected).isfinite()).nonzero()[0].tolist()
    return f"{found[tuple(place)].item()} at {place}, not {expected[tuple(place)].item():.6g}"


def flat(columns: Tensor) -> Tensor:
    """[N, K, *z] -> [N, K, z]."""
    return columns.reshape(*columns.shape[:2], -1)


def in_chunks(residual: Factor) -> Factor:
    """The same, its columns made in two chunks, by their numbers."""

    def factor(op: Op, gradient: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        assert residual.some is not None
        parts = [residual.some(op, gradient, numbers) for numbers in torch.arange(residual.count(op)).tensor_split(2)
                 if len(numbers)]
        columns = {name: torch.cat([found[name] for found, _ in parts], 1) for name in parts[0][0]}
        signs = [torch.ones(next(iter(found.values())).shape[:2], dtype=gradient.dtype) if signs is None else signs
                 for found, signs in parts]
        return columns, torch.cat(signs, 1)

    return Factor(residual.count, factor)


def residual_matrix(residual: Residual, op: Op, names: list[str], gradient: Tensor | None, size: int,
                    where: str, samples: int = SAMPLES) -> Tensor:
    """The rule's residual as dense matrices [N, h, h]."""
    given = () if gradient is None else (gradient,)
    if isinstance(residual, Zero):
        return torch.zeros(samples, size, size, dtype=torch.float64)
    if isinstance(residual, Diagonal):
        diagonal = residual.diagonal(op, *given)
        wanted = (samples, *op.shape(names[0]))
        assert getattr(diagonal, "shape", None) == wanted, (
            f"{where}: {names[0]}: the residual's diagonal must be a tensor of its input's shape, {list(wanted)}")
        return torch.diag_embed(diagonal.reshape(samples, -1))
    assert isinstance(residual, Factor), (
        f"{where}: the residual must be ZERO, Diagonal(...) or Factor(...), not {residual!r}")
    made: Any = residual.factor(op, *given)
    assert isinstance(made, tuple), f"{where}: factor must return ({{argument: columns}}, signs or None)"
    columns, signs = made
    missing = [name for name in names if name not in columns]
    assert not missing, f"{where}: factor gives no columns at {', '.join(missing)}; it has {', '.join(columns)}"
    joined = torch.cat([flat(columns[name]) for name in names], dim=-1)
    assert joined.shape[1] == residual.count(op), (
        f"{where}: the residual's factor has {joined.shape[1]} columns, and its count says {residual.count(op)}")
    weight = torch.ones(joined.shape[:2], dtype=joined.dtype) if signs is None else signs
    return torch.einsum("nka,nk,nkb->nab", joined, weight, joined)

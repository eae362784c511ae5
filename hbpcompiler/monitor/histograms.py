"""Histograms of gradients, and of gradients and parameters, from the counts that a program gives."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hbpcompiler.compiler.program.histograms import MAGNITUDES, PARAMETER_MAGNITUDES, histogram_cells
from hbpcompiler.monitor.seen import Seen


def magnitude_edges(low: int, octaves: int, parts: int) -> list[float]:
    """The edges of bins by sign and magnitude (see docs/quantities.md): symmetric, in the middle one around zero."""
    positive = [2.0 ** (low + number // parts) * (1 + number % parts / parts) for number in range(octaves * parts + 1)]
    return [-edge for edge in reversed(positive)] + positive


def gradient_edges(seen: Seen) -> list[float]:
    """Of this run's histograms."""
    given = seen.edges[0]
    return magnitude_edges(*MAGNITUDES) if given is None else given.tolist()


def parameter_edges(seen: Seen) -> list[float]:
    given = seen.edges[1]
    return magnitude_edges(*PARAMETER_MAGNITUDES) if given is None else given.tolist()


def histogram(seen: Seen) -> dict[str, Any]:
    """{"counts": [B], "edges": [B + 1]}: all entries of all g_n; what is beyond the edges is in the outermost bins."""
    counts = sum(counts.sum(0) for counts in _with_zeros(seen).values())
    assert isinstance(counts, Tensor)
    edges = gradient_edges(seen)
    if seen.edges[0] is None:
        counts, edges = trimmed(counts, edges, 0)
    return {"counts": counts.tolist(), "edges": edges}


def histograms_2d(seen: Seen) -> dict[str, Any]:
    """By parameter name, and under "" of all: {"counts": [gradient bins][parameter bins], "edges": [.., ..]}."""
    own = _with_zeros(seen)
    whole = sum(own.values())
    assert isinstance(whole, Tensor)
    found = {}
    for name, counts in {"": whole, **own}.items():
        counts, rows = counts.t(), gradient_edges(seen)
        columns = parameter_edges(seen)
        if seen.edges[0] is None:
            counts, rows = trimmed(counts, rows, 0)
        if seen.edges[1] is None:
            counts, columns = trimmed(counts, columns, 1)
        found[name] = {"counts": counts.tolist(), "edges": [rows, columns]}
    return found


def _with_zeros(seen: Seen) -> dict[str, Tensor]:
    """Counts [R, B] by parameter name, R = 1 where there is no second axis, all N times as many as it has entries.

    Those that no sample reaches (rows of an embedding) are zeros that a program need not have counted.
    """
    assert seen.result is not None
    two = "grad_histogram_2d" in seen.result
    found = {}
    for name, counts in seen["grad_histogram_2d" if two else "grad_histogram"].items():
        counts = (counts if two else counts.unsqueeze(0)).cpu()
        parameter = seen.parameters[name]
        if two:
            rows = histogram_cells(parameter.detach(), seen.edges[1], *PARAMETER_MAGNITUDES).flatten()
            expected = torch.bincount(rows, minlength=len(counts)).cpu() * seen.samples
        else:
            expected = torch.tensor([parameter.numel() * seen.samples], device="cpu")
        nothing = torch.zeros(1, dtype=parameter.dtype, device="cpu")
        zero = int(histogram_cells(nothing, _on_cpu(seen.edges[0]), *MAGNITUDES))
        counts = counts.clone()
        counts[:, zero] += expected - counts.sum(1)
        found[name] = counts
    return found


def _on_cpu(edges: Any) -> Any:
    return None if edges is None else edges.cpu()


def trimmed(counts: Tensor, edges: list[float], axis: int) -> tuple[Tensor, list[float]]:
    """Without the empty bins at both ends; the one around zero stays."""
    middle = counts.shape[axis] // 2
    others = [other for other in range(counts.dim()) if other != axis]
    filled = (counts.sum(others) if others else counts).nonzero().flatten().tolist()
    first, last = min([middle, *filled]), max([middle, *filled])
    return counts.narrow(axis, first, last - first + 1), edges[first : last + 2]

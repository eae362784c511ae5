"""Layers against steps: heatmaps of all quantities by parameter, packed for the page."""

from __future__ import annotations

import base64
import math
import sys
from array import array
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hbpcompiler.report.instruments.gradients import field
from hbpcompiler.report.tracks import Layers, Track
from hbpcompiler.report.verdicts.gradients import layer_spread
from hbpcompiler.report.words import Verdict

CELLS = 360_000
"""Of all heatmaps of a page; 16 bytes each where several steps share one."""
MOST_GROUPS, FEWEST_GROUPS = 240, 16
"""Groups of steps on a heatmap's axis."""
FIELD_CELLS = 500_000
"""Of all histograms of two axes by layer."""
LABELS = {
    "grad_norm": "norm of the gradient", "grad_rms": "gradient by entry (root mean square)",
    "distance": "distance from the start", "update_size": "size of the update",
    "relative_update": "size of the update / norm of the parameter", "parameter_norm": "norm of the parameter",
    "hess_trace": "trace of the Hessian",
}
"""Names of the heatmaps, in the order of the page; a quantity of one's own has its own name."""


def heatmaps(tracks: Sequence[Track]) -> list[dict[str, Any]]:
    """One for each quantity by parameter; each with a place for every run, None where the run lacks it."""
    tables = [tables_of(track) for track in tracks]
    names = dict.fromkeys(name for name in LABELS if any(name in table for table in tables))
    names |= dict.fromkeys(name for table in tables for name in table)
    rows = sum(len(layers.names) for table in tables for layers in table.values())
    groups = max(FEWEST_GROUPS, min(MOST_GROUPS, CELLS // max(rows, 1)))
    return [{"name": name, "label": LABELS.get(name, name),
             "runs": [packed(table[name], groups) if name in table else None for table in tables]} for name in names]


def tables_of(track: Track) -> dict[str, Layers]:
    """All quantities by parameter, also those that follow from two of them."""
    found = {name: layers for name in track.layered if (layers := track.layers(name)) is not None}
    if "grad_norm" in found:
        layers = found["grad_norm"]
        entries = torch.tensor([track.sizes.get(name, 0) for name in layers.names], dtype=torch.float64, device="cpu")
        if bool((entries > 0).all()):
            found["grad_rms"] = Layers(layers.names, layers.steps, layers.values / entries.sqrt())
    if "update_size" in found and "parameter_norm" in found:
        ratio = _ratio(found["update_size"], found["parameter_norm"])
        if ratio is not None:
            found["relative_update"] = ratio
    return found


def _ratio(above: Layers, below: Layers) -> Layers | None:
    """At the steps that both have; None where they have none in common, or other layers."""
    common = torch.isin(above.steps, below.steps)
    if above.names != below.names or not bool(common.any()):
        return None
    steps = above.steps[common]
    divisors = below.values[torch.searchsorted(below.steps, steps)]
    return Layers(above.names, steps, above.values[common] / divisors)


def packed(layers: Layers, groups: int) -> dict[str, Any]:
    """For the page: groups of steps with median, least and largest value of each layer, [L, G] in base64, layer by
    layer, in single precision where that holds them. A group with a value that is not finite has no least and largest.
    """
    parts = layers.values.tensor_split(min(groups, len(layers.steps)))
    steps = layers.steps.tensor_split(len(parts))
    code = "f" if _fits_single(layers.values) else "d"
    found = {"layers": list(layers.names), "code": code, "steps": [part[len(part) // 2].item() for part in steps],
             "from": [part[0].item() for part in steps], "to": [part[-1].item() for part in steps],
             "median": _base64(torch.stack([_median(part) for part in parts], dim=1), code)}
    if len(parts) < len(layers.steps):
        found["low"] = _base64(torch.stack([part.amin(0) for part in parts], dim=1), code)
        found["high"] = _base64(torch.stack([part.amax(0) for part in parts], dim=1), code)
    return found


def _median(part: Tensor) -> Tensor:
    """[L], nan where a value is not finite, so that it is seen."""
    kept = torch.where(part.isfinite(), part, math.nan)
    return kept.median(0).values


def _lower_median(part: Tensor) -> Tensor:
    """[L], nan where a value is not finite."""
    kept = torch.where(part.isfinite(), part, math.nan)
    return kept.median(0).values


def _base64(values: Tensor, code: str) -> str:
    """Numbers of this code of `array`, little endian."""
    numbers = array(code, values.flatten().tolist())
    if sys.byteorder == "big":
        numbers.byteswap()
    return base64.b64encode(numbers.tobytes()).decode()


def _fits_single(values: Tensor) -> bool:
    """Whether single precision holds all that is finite and not zero as a normal number."""
    sizes = values[values.isfinite() & (values != 0)].abs()
    limits = torch.finfo(torch.float32)
    return not len(sizes) or bool(sizes.min() >= limits.tiny and sizes.max() <= limits.max)


def fields_by_layer(tracks: Sequence[Track]) -> list[dict[str, Any]]:
    """The last histograms of gradients against parameters of each layer, by run."""
    found = [{name: histogram for name, histogram in track.fields("grad_hist_2d").items() if name} for track in tracks]
    many = sum(map(len, found))
    bins = max(8, min(60, math.isqrt(FIELD_CELLS // max(many, 1))))
    return [{name: field(histogram, bins) for name, histogram in fields.items()} for fields in found]


def spread_of(track: Track) -> Verdict | None:
    """The recent gradients of the layers against each other."""
    layers = track.layers("grad_norm")
    if layers is None:
        return None
    recent = layers.values[-max(1, min(len(layers.values), max(5, len(layers.values) // 10))):]
    middle = recent.nanmedian(0).values.tolist()
    finite = {name: value for name, value in zip(layers.names, middle, strict=True) if math.isfinite(value)}
    return layer_spread(finite) if finite else None

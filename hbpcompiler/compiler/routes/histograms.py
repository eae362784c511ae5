"""Histograms of the columns' cotangents T, chunk by chunk: in bins that a call gives, or by sign and magnitude."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from hbpcompiler.compiler.program.histograms import (
    MAGNITUDES,
    PARAMETER_MAGNITUDES,
    add_histogram_,
    count_entries_,
    empty_histogram,
    empty_histogram_2d,
    histogram_cells,
)
from hbpcompiler.compiler.routes.site import Use
from hbpcompiler.quantities import HISTOGRAM, HISTOGRAM_2D


def bins_of(magnitudes: tuple[int, int, int]) -> int:
    """How many there are where a call gives no edges."""
    _, octaves, parts = magnitudes
    return 2 * octaves * parts + 1


def empty_histograms(stream: Any, kinds: Collection[str], edges: Any, parameter_edges: Any) -> dict[str, Any]:
    """Counts of nothing, by closing."""
    found = {}
    if HISTOGRAM in kinds:
        found[HISTOGRAM] = empty_histogram(stream, edges, bins_of(MAGNITUDES))
    if HISTOGRAM_2D in kinds:
        found[HISTOGRAM_2D] = empty_histogram_2d(stream, edges, bins_of(MAGNITUDES), parameter_edges,
                                                 bins_of(PARAMETER_MAGNITUDES))
    return found


def rows_of(parameter: Any, edges: Any) -> Any:
    """The bin of each of the parameter's own values."""
    return histogram_cells(parameter, edges, *PARAMETER_MAGNITUDES)


def add_histograms(use: Use, product: Any, totals: Mapping[str, Any], kinds: Collection[str],
                   outer: Callable[[Any], Any] = lambda proxy: proxy) -> dict[str, Any]:
    """The totals with the entries of T [n, k, *theta] counted; `outer` takes a whole tensor into a loop."""
    found = {}
    if HISTOGRAM in kinds:
        found[HISTOGRAM] = count_entries_(totals[HISTOGRAM], product, outer(use.edges), *MAGNITUDES)
    if HISTOGRAM_2D in kinds:
        cells = histogram_cells(product, outer(use.edges), *MAGNITUDES)
        found[HISTOGRAM_2D] = add_histogram_(totals[HISTOGRAM_2D], cells, outer(use.rows))
    return found

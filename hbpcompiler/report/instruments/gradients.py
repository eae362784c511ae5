"""The column of gradients: the tests of their noise, the histograms of their entries."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hbpcompiler.report.curves import plain
from hbpcompiler.report.instruments.instrument import Drawn, Instrument, Line, drawn_lines
from hbpcompiler.report.tracks import Histogram, Track
from hbpcompiler.report.verdicts import gradients

TESTS = ("norm_test", "inner_test", "ortho_test")
AXIS_BINS = 160
"""Most bins on an axis of a histogram of two that are drawn; neighbours are added up beyond."""


def _noise(track: Track) -> Drawn | None:
    tests = [track.series(name) for name in TESTS]
    rows = track.rows
    verdict = None
    if (many := len(tests[0].recent)):
        verdict = gradients.noise(tests[0].recent, _norms_at(track, tests[0].finite.steps[-many:]),
                                  rows.recent.median().item() if len(rows) else None)
    return drawn_lines(tests, [verdict])


def _norms_at(track: Track, steps: Tensor) -> Tensor:
    """Norms of the gradient at these steps; ones where they are not known."""
    norms = track.series("grad_norm").at(steps)
    return norms if bool((norms.isfinite() & (norms > 0)).all()) else torch.ones_like(norms)


def _areas(track: Track) -> Drawn | None:
    """The last finite values of the three tests as areas."""
    tests = {name: track.series(name).recent for name in TESTS}
    if not all(len(values) for values in tests.values()):
        return None
    norm, inner, orthogonal = (values.median().item() for values in tests.values())
    return Drawn({"norm": norm, "inner": inner, "orthogonal": orthogonal}, (gradients.direction(inner, orthogonal),))


def _entries(track: Track) -> Drawn | None:
    found = track.histograms("grad_hist_1d")
    if found is None:
        return None
    first, last = found
    norm = track.series("grad_norm")
    finite = bool(norm.at(torch.tensor([last.step], device="cpu")).isfinite()) if len(norm) else True
    said = gradients.entries(last.counts, last.edges[0]) if finite else gradients.not_finite(last.step)
    return Drawn({"first": bars(first), "last": bars(last)}, (said,))


def bars(histogram: Histogram) -> dict[str, Any]:
    """A histogram for the page; counts of different steps are comparable as they are."""
    return {"step": histogram.step, "counts": plain(histogram.counts), "edges": plain(histogram.edges[0])}


def _field(track: Track) -> Drawn | None:
    found = track.fields("grad_hist_2d").get("")
    if found is None:
        return None
    return Drawn(field(found), (gradients.field(found.counts, *found.edges),))


def field(histogram: Histogram, bins: int = AXIS_BINS) -> dict[str, Any]:
    """A histogram of two axes for the page, neighbours added up to at most so many bins on each."""
    counts, rows = _merged(histogram.counts, histogram.edges[0], bins)
    turned, columns = _merged(counts.T, histogram.edges[1], bins)
    return {"step": histogram.step, "counts": turned.T.long().tolist(),
            "edges": [plain(rows), plain(columns)]}


def _merged(counts: Tensor, edges: Tensor, bins: int) -> tuple[Tensor, Tensor]:
    """[A, B] with neighbours along the first axis added up, and the edges that remain."""
    together = -(-len(counts) // bins)
    if together == 1:
        return counts, edges
    parts = [part.sum(0) for part in counts.split(together)]
    return counts.new_tensor([part.tolist() for part in parts]), edges[[*range(0, len(counts), together), -1]]


GRADIENTS = (
    Instrument(
        "noise", "Noise of the gradient", TESTS,
        "Standard error of the mini-batch's gradient over its norm (norm test), and its parts along (inner) and across "
        "(orthogonal) the gradient. Well below 1 the direction is to be trusted; else a larger batch or a smaller step "
        "size helps. The samples needed are the variance of the samples' gradients over the square of the gradient, of "
        "which the noise of the batch itself is taken off: near 1 the tests alone say little.",
        "series", _noise, (Line("norm test"), Line("inner test", role="second"),
                           Line("orthogonal test", role="third")), {"log": True, "at": 1}),
    Instrument(
        "areas", "Noise as areas", TESTS,
        "The gradient has length 1. Disc: the norm test; horizontal band: the inner test; vertical band: the "
        "orthogonal test, medians of the last tenth. Areas larger than the dashed circle: the noise is larger than the "
        "gradient.",
        "tests", _areas),
    Instrument(
        "grad_hist_1d", "Entries of the samples' gradients", ("grad_hist_1d",),
        "How often a number is an entry of one sample's gradient, on a logarithmic axis: last tracked step in colour, "
        "first step thin. Wide: badly scaled inputs. All at zero: dead units or vanishing gradients. All in the end "
        "bins: an explosion.",
        "bars", _entries),
    Instrument(
        "grad_hist_2d", "Gradients against parameters", ("grad_hist_2d",),
        "Entries of the samples' gradients (vertical) against the values of their parameters (horizontal), as log10 of "
        "the count. Parameters that stay in their first range with tiny gradients do not learn; per layer below.",
        "field", _field),
)

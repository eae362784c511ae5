"""Verdicts on the gradients of samples: the tests of their noise, histograms."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hbpcompiler.report.words import Verdict, number, share

NOISY = 2.0
"""Times the batch, from which the samples that the norm test asks for are worth a word above the page."""
AT_THE_ENDS = 0.01
"""Share of entries in the outermost bins from which the range is called too narrow."""
AT_ZERO = 0.9
"""Share of entries next to zero from which gradients are called dead or vanishing."""


def samples_needed(tests: Tensor, norms: Tensor, rows: float) -> tuple[float, bool]:
    """Samples for which the norm test would be 1 (Byrd et al. 2012, eq. 3.9): with which the standard error of the
    gradient is as large as the gradient; and whether that is but a bound from below.

    The gradient of a mini-batch is longer than that of all data by its own noise: in the mean its square is |g|^2 + e^2
    with the standard error e, so that tests stay near 1 however small g is, and rows * test^2 near the batch. What is
    needed is rows * e^2 / |g|^2, with both squares in the mean over some steps (McCandlish et al. 2018, appendix A).
    Where |g|^2 is not known to be above zero by two standard errors, the bound is given by what it can be at most.

    Args:
        tests: [S] norm tests of these steps.
        norms: [S] norms of the mini-batches' gradients, up to a common factor.
        rows: samples of a batch.
    """
    errors, squares = (tests * norms).square(), norms.square()
    signals = squares - errors
    signal, error = signals.mean().item(), errors.mean().item()
    doubt = 2 * signals.std().item() / math.sqrt(len(signals)) if len(signals) > 1 else squares.mean().item() / 2
    if signal > doubt:
        return rows * error / signal, False
    bound = error / (max(signal, 0.0) + doubt) if doubt > 0 else 0.0
    return rows * max(bound, tests.square().median().item()), True


def noise(tests: Tensor, norms: Tensor, rows: float | None) -> Verdict:
    """What the norm test asks for: that the gradient's standard error is at most as large as the gradient.

    Args:
        tests, norms: as for `samples_needed`.
        rows: samples of the batch, None where unknown.
    """
    if rows is None:
        middle = tests.median().item()
        return Verdict(f"noise: standard error {number(middle)} of the gradient's norm", notable=middle > NOISY)
    needed, at_least = samples_needed(tests, norms, rows)
    about = ("more than " if at_least else "about ") + number(float(f"{needed:.1e}"))
    return Verdict(f"noise: the norm test needs {about} samples, the batch has {number(rows, 6)}",
                   notable=needed > NOISY * rows)


def direction(inner: float, orthogonal: float) -> Verdict:
    """How the noise is spread: along the gradient, or across it."""
    along, across = number(inner), number(orthogonal)
    if orthogonal > 2 * inner:
        return Verdict(f"the noise lies across the gradient ({across}) rather than along it ({along})")
    if inner > 2 * orthogonal:
        return Verdict(f"the noise lies along the gradient ({along}) rather than across it ({across})")
    return Verdict(f"the noise is about as large along the gradient ({along}) as across it ({across})")


def entries(counts: Tensor, edges: Tensor) -> Verdict:
    """Where the entries of the samples' gradients lie.

    Args:
        counts: [B] of the bins.
        edges: [B + 1] increasing.
    """
    total = counts.sum().item()
    if not total > 0:
        return Verdict("the histogram is empty", notable=True)
    outermost = [(counts[end].item(), edges[inner].item()) for end, inner in ((0, 1), (-1, -2))
                 if len(counts) > 2 and not cut_off(edges[end].item(), edges[inner].item())]
    ends = sum(count for count, _ in outermost) / total
    zero = counts[(edges[:-1] <= 0) & (edges[1:] >= 0)].sum().item() / total
    low, high = (number(value, 2) for value in middle(counts, edges))
    if ends > AT_THE_ENDS:
        beyond = "beyond " + " or ".join(number(edge, 2) for _, edge in outermost)
        return Verdict(f"{share(ends)} of the entries lie in the outermost bins ({beyond}): badly scaled inputs or an "
                       "explosion", notable=True)
    if zero > AT_ZERO and len(counts) > 2:
        return Verdict(f"{share(zero)} of the entries lie in the bin of zero: dead units, vanishing gradients or bins "
                       "that are too wide", notable=True)
    return Verdict(f"90 % of the entries lie between {low} and {high}")


def not_finite(step: int) -> Verdict:
    """Of a histogram at a step whose gradient is not finite."""
    return Verdict(f"gradients are not finite at step {step}: such entries lie in the outermost bins", notable=True)


def cut_off(outer: float, inner: float) -> bool:
    """Whether bins beyond the outermost one, with these edges, were left out because they were empty: then it holds
    nothing that lies beyond. It is around zero, or by magnitude, two to an octave, and ends below 2^24, where those of
    `hbp.Monitor` do."""
    if outer * inner <= 0:
        return outer * inner < 0
    by_magnitude = any(abs(outer / inner - step) < 1e-6 for step in (1.5, 4 / 3, 2.0))
    return by_magnitude and abs(outer) < 2.0**24


def middle(counts: Tensor, edges: Tensor, inside: float = 0.9) -> tuple[float, float]:
    """Edges of bins between which this share of the counts lies, as much being left out on either side.

    Args:
        counts: [B], not all zero.
        edges: [B + 1].
    """
    below = torch.cumsum(counts, 0) / counts.sum()
    outside = (1 - inside) / 2
    first = int(torch.searchsorted(below, torch.tensor(outside, dtype=below.dtype, device="cpu"), right=True))
    last = int(torch.searchsorted(below, torch.tensor(1 - outside - 1e-12, dtype=below.dtype, device="cpu")))
    return edges[min(first, len(counts) - 1)].item(), edges[min(last, len(counts) - 1) + 1].item()


def field(counts: Tensor, gradients: Tensor, parameters: Tensor) -> Verdict:
    """Where parameters and the entries of their gradients lie.

    Args:
        counts: [A, B].
        gradients: [A + 1] edges.
        parameters: [B + 1] edges.
    """
    if not counts.sum() > 0:
        return Verdict("the histogram is empty", notable=True)
    by_gradient, by_parameter = counts.sum(1), counts.sum(0)
    low, high = (number(value, 2) for value in middle(by_parameter, parameters))
    below, above = (number(value, 2) for value in middle(by_gradient, gradients))
    return Verdict(f"90 % of the parameters lie between {low} and {high}, of the entries between {below} and {above}")


def layer_spread(norms: dict[str, float]) -> Verdict:
    """The smallest and the largest gradient of the layers.

    Args:
        norms: by parameter, finite.
    """
    zero = [name for name, value in norms.items() if value == 0]
    if zero:
        who = f"{zero[0]} and {len(zero) - 1} more have" if len(zero) > 1 else f"{zero[0]} has"
        return Verdict(f"{who} a gradient of zero: nothing is learned there", notable=True)
    smallest, largest = min(norms, key=norms.__getitem__), max(norms, key=norms.__getitem__)
    decades = math.log10(norms[largest] / norms[smallest])
    text = f"from {number(norms[smallest], 2)} ({smallest}) to {number(norms[largest], 2)} ({largest})"
    if decades >= 4:
        return Verdict(f"{text}: {decades:.0f} orders of magnitude apart, small gradients vanish", notable=True)
    return Verdict(text)

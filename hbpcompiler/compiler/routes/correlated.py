"""A of windows that slide along both axes of an image: products of pixels with pixels so far away.

Where `sliding` multiplies rows by the distance of places along one axis, this one goes by both:

    A[a, b] = sum over the pixels q that place a sees of x[q] x[q + b - a]^T,

and all sums over the inner pixels, which every place sees, are the gradient of a convolution's weight, of x with
itself. Half of the distances suffice, as A is symmetric. For 3 x 3 windows: 15 products of pixels instead of 81.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from hbpcompiler.compiler.cost.figures import Cost
from hbpcompiler.compiler.program.correlations import seen_alike, windows_gram
from hbpcompiler.compiler.routes.rows import Rows
from hbpcompiler.compiler.routes.site import NOTHING, Route, Site, Use
from hbpcompiler.compiler.trace.graph import N
from hbpcompiler.quantities import INPUT_FACTOR


class CorrelatedInputFactor(Route):
    """A by the distance between window places along both axes; exact, padding included."""

    name = "products of pixels"
    kinds = frozenset({INPUT_FACTOR})
    limits: tuple[str, ...] = ("rearranged_passes", "cache_bytes", "cached_shares", "adding_passes",
                               "cached_adding_passes", "mirrored_passes")

    def applies(self, site: Site) -> bool:
        """Where oneDNN has the kernel, in single precision: in double precision products by distance are faster."""
        return self.serves(site) and site.resources.machine.linear_per_second > 0

    def serves(self, site: Site) -> bool:
        rows = site.rows
        return (site.form == NOTHING and rows is not None and bool(site.features) and len(rows.size) == 2
                and rows.stride == (1, 1))

    def cost(self, site: Site, kinds: frozenset[str]) -> Cost:
        assert site.rows is not None
        rows, square = site.rows, site.rows.channels**2
        products = by_kernel = read = rearranged = added = calls = 0
        for piece in _pieces(rows, site):
            made = piece.pixels * piece.distances
            products += made
            by_kernel += made if piece.is_by_kernel else 0
            read += 4 * piece.pixels + (0 if piece.is_by_kernel else made)  # whose copies stay in cache
            rearranged += piece.distances if piece.is_by_kernel else 0
            added += piece.added
            calls += 7 + 4 * piece.places
        window = rows.size[0] * rows.size[1]
        mirrored = rows.size[0] * (rows.size[0] - 1) // 2 * rows.size[1] ** 2
        limits = site.resources.limits
        stays = square * window**2 * site.itemsize <= limits.cached_shares * limits.cache_bytes
        adding = limits.cached_adding_passes if stays else limits.adding_passes
        at_the_end = adding * added + window**2 + limits.mirrored_passes * mirrored
        seen, largest = N * rows.channels, 2 * window
        moved = seen * read + square * (limits.rearranged_passes * rearranged + at_the_end)
        memory = 3 * seen * rows.height * _positions(rows, site)[1] + square * (largest + window**2)
        return Cost(N * square * products, moved * site.itemsize, memory * site.itemsize, calls + mirrored,
                    kernel=N * square * by_kernel)

    def write(self, site: Site, use: Use, kinds: frozenset[str]) -> Mapping[str, Any]:
        rows = site.rows
        assert rows is not None
        x = getattr(use.op, rows.slot)
        return {INPUT_FACTOR: windows_gram(x, list(rows.size), list(rows.dilation), list(rows.before),
                                           _positions(rows, site))}


@dataclass(frozen=True)
class _Piece:
    """What is made at once: products of some pixels, which the same places of the window see, with those around."""

    pixels: int
    is_by_kernel: bool
    distances: int
    places: int
    added: int
    """How many products of channels with channels are added to A, over all places."""


def _positions(rows: Rows, site: Site) -> list[int]:
    return [rows.height, site.size("p") // rows.height]


def _pieces(rows: Rows, site: Site) -> Iterator[_Piece]:
    """As `windows_gram` makes them."""
    axes = [_axis_pieces(rows, axis, positions) for axis, positions in enumerate(_positions(rows, site))]
    for tall, wide in itertools.product(*axes):
        down = [min(tall.ahead, rows.size[0] - 1 - place) + 1 for place in tall.places]
        across = [min(place, wide.back) + min(rows.size[1] - 1 - place, wide.ahead) + 1 for place in wide.places]
        yield _Piece(pixels=tall.pixels * wide.pixels,
                     is_by_kernel=min(tall.pixels, wide.pixels) > 1,
                     distances=(tall.ahead + 1) * (wide.back + wide.ahead + 1),
                     places=len(down) * len(across),
                     added=sum(down) * sum(across))


class _AxisPiece(NamedTuple):
    pixels: int
    back: int
    ahead: int
    """How many places back and ahead there are pixels at all."""
    places: list[int]


def _axis_pieces(rows: Rows, axis: int, positions: int) -> list[_AxisPiece]:
    places, dilation, before = rows.size[axis], rows.dilation[axis], rows.before[axis]
    length = positions + dilation * (places - 1) - before - rows.after[axis]
    found = []
    for first, last in seen_alike(length, places, dilation, before, positions):
        seen = [place for place in range(places)
                if place * dilation - before <= first and last <= place * dilation - before + positions]
        found.append(_AxisPiece(last - first, min(places - 1, (last - 1) // dilation),
                                min(places - 1, (length - 1 - first) // dilation), seen))
    return found

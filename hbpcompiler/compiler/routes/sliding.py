"""A of windows that slide along an axis: products of rows with rows so far away, instead of windows with windows.

The operand of a convolution holds every row of the input several times, once for each place in the window. What
window places a and a' have in common depends on their distance alone, but for the rows at both ends. With rows
u[y], y = 0 ... and h positions,

    A[a, a + d] = sum over y = a ... a + h - 1 of u[y] u[y + d]^T
                = core[d] (rows that all windows of this distance have)  +  a window over the edges' rows.

The one product of (window * i)^2 for each position becomes one of i^2 for each distance: window times fewer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from hbpcompiler.compiler.cost.figures import Cost, chunk_length
from hbpcompiler.compiler.program.grams import by_places
from hbpcompiler.compiler.program.writer import Part
from hbpcompiler.compiler.routes.site import (
    NOTHING,
    Route,
    Site,
    Use,
)
from hbpcompiler.compiler.trace.graph import N
from hbpcompiler.quantities import INPUT_FACTOR
from hbpcompiler.rule import called


@dataclass(frozen=True)
class _Sizes:
    """What the route counts with. Rows are [i, q] matrices: features apart from the window, positions in a row."""

    window: int
    step: int
    height: int
    features: int
    width: int

    @classmethod
    def of(cls, site: Site) -> _Sizes:
        assert site.rows is not None
        window, step, height = site.rows.size[0], site.rows.dilation[0], site.rows.height
        return cls(window, step, height, site.size(site.features) // window, site.size("p") // height)

    def edge(self, distance: int) -> int:
        """Rows on each side that only some windows have which are so many places apart."""
        return self.step * (self.window - 1 - distance)

    @property
    def rows(self) -> int:
        return self.height + self.step * (self.window - 1)


class SlidingInputFactor(Route):
    """A by the distance between window places; exact, padding included, since rows of zeros are rows."""

    name = "products by distance"
    kinds = frozenset({INPUT_FACTOR})
    limits: tuple[str, ...] = ("cache_bytes",)

    def applies(self, site: Site) -> bool:
        if site.form != NOTHING or site.rows is None or not site.features:
            return False
        sizes = _Sizes.of(site)
        return sizes.window > 1 and sizes.height > sizes.edge(0)

    def _chunk(self, site: Site) -> int:
        sizes = _Sizes.of(site)
        return chunk_length(2 * sizes.features * sizes.rows * sizes.width * site.itemsize, site.resources)

    def cost(self, site: Site, kinds: frozenset[str]) -> Cost:
        sizes, chunk = _Sizes.of(site), self._chunk(site)
        distances = range(sizes.window)
        rows = sum(sizes.height + sizes.edge(distance) for distance in distances)
        edges = sum(2 * sizes.edge(distance) for distance in distances)
        square, read = sizes.features**2, sizes.features * sizes.width
        totals = (sizes.window + edges) * square
        adds, at_edges = N * read * sizes.features * rows, N * read * sizes.features * edges
        factor = sizes.window**2 * square
        moved = N * read * (3 * sizes.rows + rows) + 2 * totals * N / chunk + 6 * factor + 2 * totals
        memory = 2 * chunk * read * sizes.rows + totals + 2 * factor
        assert site.rows is not None
        copies = sizes.features // site.rows.channels * sizes.window**2 / 2  # by `by_places`: half a call each
        calls = (2 + 4 * sizes.window) * (1 + N / chunk) + 5 * sizes.window + copies
        return Cost(adds, moved * site.itemsize, memory * site.itemsize, calls, at_edges)

    def write(self, site: Site, use: Use, kinds: frozenset[str]) -> Mapping[str, Any]:
        sizes, source = _Sizes.of(site), site.rows
        assert source is not None
        height, step = sizes.height, sizes.step

        def body(part: Part) -> None:
            assert part.op is not None
            rows = called("rows", source.of(part.op).permute(1, 2, 0, 3).flatten(2))  # [i, rows, samples * width]
            for distance in range(sizes.window):
                edge, shift = sizes.edge(distance), step * distance
                left, right = rows[:, edge:height], rows[:, edge + shift : height + shift]
                part.totals[f"core {distance}"].addmm_(left.flatten(1), right.flatten(1).t())
                if edge:
                    left = called("edges", torch.cat([rows[:, :edge], rows[:, height : height + edge]], 1))
                    far = [rows[:, shift : edge + shift], rows[:, height + shift :]]
                    right = called(f"edges_{distance}_on", torch.cat(far, 1)) if distance else left
                    part.totals[f"edges {distance}"].baddbmm_(left.transpose(0, 1), right.permute(1, 2, 0))

        square = (sizes.features, sizes.features)
        totals = {f"core {distance}": square for distance in range(sizes.window)}
        edges = {f"edges {distance}": (2 * sizes.edge(distance), *square) for distance in range(sizes.window - 1)}
        found = use.writer.loop(body, op=use.op, sliced={"input": use.stream}, chunk=self._chunk(site),
                                totals={**totals, **edges})
        windows: list[Any] = []
        for distance in range(sizes.window):
            core, edge = called(f"core_{distance}_apart", found[f"core {distance}"]), sizes.edge(distance)
            if edge:
                ends = called(f"edges_{distance}_apart", found[f"edges {distance}"])
                core = called(f"windows_{distance}_apart", ends.unfold(0, edge, step).sum(-1).add_(core))
            windows.append(core if edge else core.unsqueeze(0))
        return {INPUT_FACTOR: by_places(windows, source.channels)}

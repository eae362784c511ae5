"""Short forms of long module paths: encoder.layers.0.attention.weight becomes e_l_0_attention_weight, everywhere.

A segment of a path is cut to the shortest beginning that no other segment of the model has ("denseb" of denseblock,
where there is a denselayer), and keeps its number; as many segments as needed, from the left.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

LONGEST = 26
"""Signs of a value's name: those of what is computed from it, "squares_ggn_mc_" and the like, stand in front."""


class Paths:
    """The short forms of one model's paths."""

    def __init__(self, paths: Iterable[str]) -> None:
        self.stems = sorted({_stem(segment) for path in paths for segment in path.split(".")} - {""})
        self.used: dict[str, str] = {}

    def shortened(self, path: str) -> str:
        """The path with as many short segments as it takes to be no longer than LONGEST, if that is enough."""
        segments = path.split(".")
        for number, segment in enumerate(segments[:-1]):
            if len(".".join(segments)) <= LONGEST:
                break
            stem = _stem(segment)
            short = self._short(stem)
            if short != stem:
                self.used[stem] = short
            segments[number] = short + segment[len(stem) :]
        return ".".join(segments)

    def _short(self, stem: str) -> str:
        others = [other for other in self.stems if other != stem]
        for length in range(1, len(stem)):
            if not any(other.startswith(stem[:length]) for other in others):
                return stem[:length]
        return stem

    def legend(self) -> Mapping[str, str]:
        """Short form -> segment, of all that were shortened."""
        return {short: stem for stem, short in sorted(self.used.items())}


def _stem(segment: str) -> str:
    """A segment without the number it ends in."""
    return re.sub(r"\d+$", "", segment)

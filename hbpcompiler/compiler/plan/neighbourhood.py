"""Which positions of a value others read, and how that grows through operations with windows."""

from __future__ import annotations

from dataclasses import dataclass

from hbpcompiler.rule import Window


@dataclass(frozen=True)
class Neighbourhood:
    """Which positions of a value others read: number b, along each axis, `length` of them from `step` * b + `first` on
    (outside the image there are none).
    """

    step: tuple[int, ...]
    first: tuple[int, ...]
    length: tuple[int, ...]

    def read_through(self, window: Window) -> Neighbourhood:
        """What these positions, as outputs, read of the input."""
        strides = tuple(window.stride)
        return Neighbourhood(
            tuple(step * stride for step, stride in zip(self.step, strides, strict=True)),
            tuple(first * stride - before
                  for first, stride, before in zip(self.first, strides, window.before, strict=True)),
            tuple((length - 1) * stride + dilation * (size - 1) + 1 for length, stride, dilation, size in
                  zip(self.length, strides, window.dilation, window.size, strict=True)))

    def joined(self, other: Neighbourhood) -> Neighbourhood:
        """The smallest one that holds both, which have the same steps."""
        first = tuple(min(pair) for pair in zip(self.first, other.first, strict=True))
        ends = [max(a + m, b + n) for a, m, b, n in
                zip(self.first, self.length, other.first, other.length, strict=True)]
        return Neighbourhood(self.step, first, tuple(end - start for start, end in zip(first, ends, strict=True)))

    def margins(self, inner: Neighbourhood) -> list[int]:
        """How much of it is before and after one inside, as F.pad counts it: from the last axis on."""
        own, given = (list(zip(place.first, place.length, strict=True)) for place in (self, inner))
        return [amount for (start, length), (first, size) in zip(reversed(own), reversed(given), strict=True)
                for amount in (first - start, start + length - first - size)]

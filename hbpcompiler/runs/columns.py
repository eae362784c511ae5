"""Numbers by name that share their names: a long log has the same two hundred ones ten thousand times."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping
from typing import Any

SHORTEST = 8
"""Names from which on it pays."""


class Names:
    """The names of one kind of value, and where each stands."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names
        self.place = {name: place for place, name in enumerate(names)}


class ByName(Mapping[str, float]):
    """Reads as a dict of floats; eight bytes a number."""

    __slots__ = ("_names", "numbers")

    def __init__(self, names: Names, numbers: array[float]) -> None:
        self._names, self.numbers = names, numbers

    @property
    def names(self) -> tuple[str, ...]:
        return self._names.names

    def __getitem__(self, name: str) -> float:
        return self.numbers[self._names.place[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names.names)

    def __len__(self) -> int:
        return len(self.numbers)

    def __repr__(self) -> str:
        return repr(dict(self))


class Sharing:
    """What is known of names so far, of one run."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, ...], Names] = {}

    def compact(self, value: Any) -> Any:
        """A long dict of floats as a `ByName`; anything else as it is."""
        if not isinstance(value, dict) or len(value) < SHORTEST:
            return value
        if any(type(part) is not float for part in value.values()):
            return value
        names = tuple(value)
        if names not in self._known:
            self._known[names] = Names(names)
        return ByName(self._known[names], array("d", value.values()))

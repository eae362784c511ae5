"""Programs that live as long as the module they were made for, whoever asked for them.

Objects of another library that come and go (Laplace makes a backend for every estimate) must not compile anew each
time, nor keep a model alive. A table of weak references cannot do it, as a program holds its module. So the table is an
attribute of the module itself: the two refer to each other and to nothing else, and go together. It is in no
state_dict, and a module's copy or pickle begins without programs.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

from torch import nn

Item = TypeVar("Item")
ATTRIBUTE = "_hbp_programs"


class Kept:
    """What was made for one module, by a key of the maker's choice."""

    def __init__(self, module: nn.Module) -> None:
        self._module = weakref.ref(module)
        self._kept: dict[Hashable, Any] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def is_of(self, module: nn.Module) -> bool:
        """Whether it was made for this module: a shallow copy of one has the attributes of the other."""
        return self._module() is module

    def get(self, key: Hashable, make: Callable[[], Item]) -> Item:
        """What is kept under the key, made if there is nothing yet."""
        if key not in self._kept:
            self._kept[key] = make()
        found: Item = self._kept[key]
        return found

    def __deepcopy__(self, memo: Any) -> None:
        return None

    def __reduce__(self) -> tuple[Any, ...]:
        """A pickled module holds nothing of this library: an empty tuple is in this place."""
        return tuple, ()


def kept(module: nn.Module) -> Kept:
    """What is kept with a module; nothing at first."""
    own = module.__dict__.get(ATTRIBUTE)
    if not (isinstance(own, Kept) and own.is_of(module)):
        own = module.__dict__[ATTRIBUTE] = Kept(module)
    return own

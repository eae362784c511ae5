"""Python values as parts of a key: equal where a traced program cannot tell them apart."""

from __future__ import annotations

import enum
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

_STDLIB = sysconfig.get_path("stdlib")
_INSTALLED = str(Path(torch.__file__).parents[1])
_OURS = str(Path(__file__).parents[1])  # somewhere else in a checkout that is installed with -e


def folders_of_packages(paths: Iterable[str]) -> set[str]:
    """Those of `paths` that packages are installed in: an environment's own, the system's that it sees besides, and the
    user's (`pip install --user`)."""
    return {path for path in paths if Path(path).name in ("site-packages", "dist-packages")}


_LIBRARIES = tuple({_STDLIB, _INSTALLED, _OURS, *(sysconfig.get_path(name) for name in ("purelib", "platlib")),
                    *folders_of_packages(sys.path)})
EXACT = (bool, int, str, bytes, type(None), type(...), range, torch.dtype, torch.device, torch.layout,
         torch.memory_format, torch.Size)
"""Values that are told apart by type and equality."""
NOT_RUN = frozenset({"__init__", "__new__", "__repr__", "__str__", "__init_subclass__", "__class_getitem__", "__del__",
                     "__reduce__", "__reduce_ex__", "__getstate__", "__setstate__", "__dir__", "__format__"})
"""Methods of classes that no trace runs."""
_PLAIN_KINDS: tuple[Any, ...] = (int, float, complex, str, bytes)


class Same:
    """Equal to itself alone: something that is known only by what it is."""

    __slots__ = ("item",)

    def __init__(self, item: Any) -> None:
        self.item = item

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and self.item is other.item

    def __hash__(self) -> int:
        return id(self.item)


def atom(value: Any) -> Any:
    """A hashable that stands for a plain value: 1, 1.0, True and -0.0 and 0.0 are different. None: it is not plain."""
    kind = type(value)
    if kind in EXACT:
        return kind, value
    if kind is float:
        return kind, value.hex()
    if kind is complex:
        return kind, value.real.hex(), value.imag.hex()
    return None


def is_plain(value: Any) -> bool:
    return atom(value) is not None or isinstance(value, enum.Enum | torch.Tensor)


def plain_part(value: Any) -> Any:
    """The number or text that an object of a class of the user's is besides, class Scale(float)."""
    for kind in _PLAIN_KINDS:
        if isinstance(value, kind):
            return atom(kind.__new__(kind, value))
    return None


def of_library(module: str | None) -> bool:
    """Whether a class or function from this Python module is Python's or torch's: code that no user changes. A class
    that was made while the program ran may have none."""
    first = (module or "").partition(".")[0]
    if first in ("torch", "numpy", "hbpcompiler", "builtins"):
        return True
    file = getattr(sys.modules.get(first), "__file__", None) or _STDLIB
    return first in sys.stdlib_module_names and file.startswith(_STDLIB)


def is_own(file: str) -> bool:
    """Whether a file is the user's own code, not an installed package."""
    return not file.startswith(_LIBRARIES)


def slots_of(kind: type) -> list[str]:
    """Names of attributes that lie in no dict."""
    found = [getattr(base, "__slots__", ()) for base in kind.__mro__]
    return [name for names in found for name in ((names,) if isinstance(names, str) else names) if name != "__dict__"]

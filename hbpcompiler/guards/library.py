"""Objects of Python's own and of numpy's that hold what a user can change: which they are, and how they are read."""

from __future__ import annotations

import argparse
import contextvars
import dataclasses
import sys
import threading
import types
import weakref
from array import array
from collections import ChainMap, UserDict, UserList, UserString, deque
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

from hbpcompiler.guards import kept
from hbpcompiler.guards.atoms import of_library

_PARTS = (types.SimpleNamespace, argparse.Namespace, UserDict, UserList, UserString, ChainMap)
_MODULES_OF_PARTS = ("torch.distributions", "weakref", "_weakrefset", "multiprocessing.sharedctypes", "os",
                     "configparser", "numpy")
_CLOSED_MODULES = ("torch._ops", "torch._C", "torch.jit", "torch._dynamo")
_BETWEEN_THREADS = ("threading", "multiprocessing", "concurrent", "asyncio", "selectors", "socket")
_BUFFERS = (bytearray, array, memoryview)
_CONTAINERS = (dict, list, set, deque, Tensor, *_BUFFERS, *kept.IN_MEMORY)
_VIEWS: tuple[Any, ...] = (type({}.keys()), type({}.values()), type({}.items()))
_PROXIES = (weakref.ProxyType, weakref.CallableProxyType)
_SWITCHES = ("environ", "getenv")
"""Names by which code reads the surroundings of the process."""


class Elements:
    """The objects of an array of numpy's, one by one, as often as they are asked for."""

    def __init__(self, held: Any) -> None:
        self._array = held

    def __iter__(self) -> Iterator[Any]:
        return iter(self._array.flat)

    def __len__(self) -> int:
        return int(self._array.size)


def is_whole(kind: type) -> bool:
    """Whether objects of this class are what they hold: all of their attributes count."""
    of_parts = issubclass(kind, _PARTS) or dataclasses.is_dataclass(kind)
    return of_parts or (of_library(kind.__module__) and str(kind.__module__).startswith(_MODULES_OF_PARTS))


def is_closed(value: Any) -> bool:
    """Whether an object is what it is, whatever it holds: modules of Python's, whose functions are code, and torch's
    operations, which keep there what they have found out about themselves."""
    return isinstance(value, types.ModuleType) or str(type(value).__module__).startswith(_CLOSED_MODULES)


def is_between_threads(value: Any) -> bool:
    """Whether threads wait for each other by it: what it holds beside plain values is theirs."""
    return str(type(value).__module__).startswith(_BETWEEN_THREADS)


def reader(value: Any) -> Callable[[], Any] | None:
    """What gives the object that this one stands for: a weak reference's, a context's, this thread's own."""
    if type(value) in _PROXIES:  # isinstance would ask the object behind it
        return lambda: value.__repr__.__self__
    if isinstance(value, weakref.ref):
        return lambda: weakref.ref.__call__(value)  # a WeakMethod itself makes a new method each time
    if isinstance(value, contextvars.ContextVar):
        return lambda: _in_context(value)
    if isinstance(value, threading.local):
        return lambda: value.__dict__
    return None


def _in_context(variable: contextvars.ContextVar[Any]) -> Any:
    try:
        return variable.get()  # get(None) would pass over the variable's own default
    except LookupError:
        return None


def is_weak(value: Any) -> bool:
    """Whether an object stands for another that it does not keep."""
    return type(value) in _PROXIES or isinstance(value, weakref.ref)


def is_array_of_objects(value: Any) -> bool:
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, numpy.ndarray) and value.dtype == object


def buffer(value: Any) -> Any:
    """What tells an array of numbers, or one such number, from another of its size; None if it is none."""
    numpy, ctypes = sys.modules.get("numpy"), sys.modules.get("ctypes")
    if numpy is not None and isinstance(value, numpy.ndarray | numpy.generic) and value.dtype != object:
        return type(value), value.shape, str(value.dtype)
    if isinstance(value, _BUFFERS):
        return type(value), memoryview(value).format
    if ctypes is not None and isinstance(value, ctypes._SimpleCData | ctypes.Structure | ctypes.Union | ctypes.Array):
        return type(value), memoryview(value).nbytes
    return None


def holder(value: Any) -> Any:
    """Whose contents a method of a container, such as {...}.get, or a view of a dict returns; None for all else."""
    if isinstance(value, _VIEWS):
        return value.mapping
    if isinstance(value, types.BuiltinMethodType | types.MethodWrapperType):
        return value.__self__ if isinstance(value.__self__, _CONTAINERS) else None
    return None


def reads_switches(names: set[str]) -> bool:
    return not names.isdisjoint(_SWITCHES)

"""What the names in the user's source stand for in a frame, found without running anything of the user's.

Only what is known for what it is counts: a method of a model's own that is called `error` may change the model, and a
`with` block may swallow what is raised in it.
"""

from __future__ import annotations

import ast
import builtins
import contextlib
import inspect
import warnings
from collections.abc import Iterator
from types import FrameType
from typing import Any

from torch import Tensor, nn

from hbpcompiler.compiler.trace.source.source import is_library

COMPLAINTS = ("print", "warn", "warning", "info", "debug", "error")
"""Calls after which all goes on as before, by the last part of their names: print, warnings.warn, logger.info."""
UNKNOWN = object()
LETS_THROUGH = (warnings.catch_warnings, contextlib.nullcontext)
"""Context managers beside torch's that swallow no exception."""
_KEPT = (ast.NamedExpr, ast.Await, ast.Yield, ast.YieldFrom)


def found(expression: ast.expr, frame: FrameType) -> Any:
    """What a name with attributes stands for; UNKNOWN for everything else. Nothing is called: no property, no
    `__getattr__`."""
    if isinstance(expression, ast.Name):
        for names in _scopes(frame):
            if expression.id in names:
                return names[expression.id]
        return UNKNOWN
    if not isinstance(expression, ast.Attribute):
        return UNKNOWN
    owner = found(expression.value, frame)
    return UNKNOWN if owner is UNKNOWN else _attribute(owner, expression.attr)


def _scopes(frame: FrameType) -> Iterator[Any]:
    """Of a generator expression those of the code that it is written in, too."""
    yield frame.f_locals
    inner = frame
    while inner.f_code.co_name.startswith("<") and inner.f_back is not None:
        inner = inner.f_back
        yield inner.f_locals
    yield frame.f_globals
    yield vars(builtins)


def _attribute(owner: Any, name: str) -> Any:
    if isinstance(owner, nn.Module):
        for held in (owner._modules, owner._parameters, owner._buffers):
            if name in held:
                return held[name]
    value = inspect.getattr_static(owner, name, UNKNOWN)
    if isinstance(value, staticmethod | classmethod):
        return value.__func__
    return UNKNOWN if isinstance(value, property) else value


def complains(statement: ast.stmt, frame: FrameType) -> bool:
    """Whether it raises, or only says something."""
    if isinstance(statement, ast.Raise):
        return True
    call = statement.value if isinstance(statement, ast.Expr) else None
    return isinstance(call, ast.Call) and says(call, frame) and all(
        is_harmless(part, frame) for given in (*call.args, *call.keywords) for part in ast.walk(given))


def says(call: ast.Call, frame: FrameType) -> bool:
    """Whether it is a call of print, warnings.warn or a logger, and of nothing that the user wrote."""
    called = call.func
    name = called.id if isinstance(called, ast.Name) else called.attr if isinstance(called, ast.Attribute) else ""
    meant = found(called, frame)
    return name in COMPLAINTS and meant is not UNKNOWN and _is_librarys(meant)


def is_harmless(part: ast.AST, frame: FrameType) -> bool:
    """Whether nothing is changed, and nothing of the user's called, where this is evaluated."""
    if isinstance(part, _KEPT):
        return False
    if not isinstance(part, ast.Call):
        return True
    name = part.func.attr if isinstance(part.func, ast.Attribute) else ""
    meant = found(part.func, frame)
    if meant is UNKNOWN:  # a method of what another call returned: x.max().item(), "{}".format(...)
        return not name.endswith("_") and (hasattr(Tensor, name) or hasattr(str, name))
    return not name.endswith("_") and _is_librarys(meant)


def _is_librarys(called: Any) -> bool:
    """Whether the code that runs is torch's, numpy's or Python's own."""
    if isinstance(called, type):
        return _package(called) in ("builtins", "torch")
    function = inspect.unwrap(getattr(called, "__func__", called))
    code = getattr(function, "__code__", None)
    if code is None or _package(function) == "numpy":
        return inspect.isroutine(function) or _package(type(function)) == "numpy"
    return is_library(code.co_filename)


def _package(what: Any) -> str:
    """That a class or a function says it comes from."""
    return str(getattr(what, "__module__", "")).partition(".")[0]


def lets_through(manager: ast.expr, frame: FrameType) -> bool:
    """Whether a `with` of this hands on what is raised inside: torch's own (no_grad, autocast) and LETS_THROUGH do."""
    if isinstance(manager, ast.IfExp):
        return lets_through(manager.body, frame) and lets_through(manager.orelse, frame)
    made = isinstance(manager, ast.Call)
    meant = found(manager.func if isinstance(manager, ast.Call) else manager, frame)
    kind = meant if isinstance(meant, type) or inspect.isfunction(meant) else type(meant)
    if not isinstance(kind, type):  # written with contextlib.contextmanager
        return made and _package(kind) == "torch"
    owner = next((own for own in kind.__mro__ if "__exit__" in vars(own)), object)
    return owner in LETS_THROUGH or _package(owner) == "torch"

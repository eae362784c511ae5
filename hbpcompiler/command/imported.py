"""What the command line names by PKG.MODULE:NAME, and how it says what went wrong."""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click
import torch

from hbpcompiler.errors import HbpError

_NO_MEMORY = ("allocate memory", "out of memory", "Storage size calculation overflowed")
"""Torch's own words, in errors of no class of their own."""


class Failure(click.ClickException):
    """One clean message on stderr and exit code 2."""

    exit_code = 2


@contextmanager
def clean_errors() -> Iterator[None]:
    try:
        yield
    except HbpError as error:
        raise Failure(str(error).replace("call model.eval()", "pass --eval (in Python: model.eval())")) from error
    except (MemoryError, RuntimeError, OverflowError) as error:
        text = str(error)
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and not any(word in text for word in _NO_MEMORY):
            raise
        raise Failure("there is not enough memory for this model and batch; take a smaller one"
                      f"{f' ({text.splitlines()[0]})' if text else ''}") from error


NETWORK = "PKG.MODULE:FACTORY, for example mypackage.networks:make"


def imported(place: str, form: str = NETWORK) -> Any:
    """The object at PKG.MODULE:NAME, from the current folder or an installed package; `form` is what an error asks
    for."""
    name, colon, attribute = place.partition(":")
    if not (name and colon and attribute):
        raise Failure(f"'{place}' must read {form}")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        found: Any = importlib.import_module(name)
    except Exception as error:
        missing = isinstance(error, ModuleNotFoundError) and name.startswith(str(error.name))
        hint = f"; run hbp from the folder that holds {name.partition('.')[0]}" if missing else ""
        if missing and name.endswith(".py"):
            module = name.removesuffix(".py").replace("/", ".")
            hint = f"; a module is meant, not its file: {module}:{attribute}"
        raise Failure(f"cannot import '{name}': {reason(error)}{hint}") from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            names = [name for name in dir(found) if part.startswith("_") or not name.startswith("_")]
            close = difflib.get_close_matches(part, names, 1)
            raise Failure(f"'{name}' has no '{attribute}'" + (f" (is it {close[0]}?)" if close else ""))
        found = getattr(found, part)
    return found


def made(place: str, kind: Any, words: str, form: str = NETWORK) -> Any:
    """The object there if it is of that kind, or what it returns when it is called without arguments."""
    found = imported(place, form)
    if isinstance(found, kind):
        return found
    if not callable(found):
        raise Failure(f"'{place}' is neither {words} nor a function that returns one: {type(found).__name__}"
                      if kind is not object else f"'{place}' cannot be called")
    try:
        found = found()
    except Exception as error:
        raise Failure(f"'{place}' failed: {reason(error)}. It is called without arguments") from error
    if not isinstance(found, kind):
        raise Failure(f"'{place}' must return {words}, but returned {type(found).__name__}")
    return found


def reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"

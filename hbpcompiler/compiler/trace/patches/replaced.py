"""Attributes of modules and classes that are others for a while."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def replaced(owner: Any, name: str, instead: Any) -> Iterator[None]:
    """Meanwhile an attribute of a module or class is another: a function in this thread alone, as others may train."""
    inherited = name not in vars(owner)
    own = getattr(owner, name)
    is_function = callable(own) and not isinstance(own, type)
    setattr(owner, name, _in_this_thread(instead, own) if is_function else instead)
    try:
        yield
    finally:
        if inherited:
            delattr(owner, name)
        else:
            setattr(owner, name, own)


def _in_this_thread(instead: Callable[..., Any], own: Callable[..., Any]) -> Callable[..., Any]:
    thread = threading.current_thread()  # the child of a fork may give its ident to another

    @functools.wraps(own)
    def chosen(*arguments: Any, **named: Any) -> Any:
        return (instead if threading.current_thread() is thread else own)(*arguments, **named)

    return chosen

"""Modules that other threads call while one is traced: torch's tracer wraps the calls of all modules in all threads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch.fx.experimental.proxy_tensor import _ModuleStackTracer


@contextmanager
def modules_of_this_thread() -> Iterator[None]:
    """Meanwhile calls of modules, and their attributes, are plain ones in other threads. A loss that another thread
    trains with would stand on the tracer's one stack of modules, where each takes off the other's."""
    thread = threading.current_thread()
    tracers: Any = _ModuleStackTracer
    noted, proxied = tracers.call_module, tracers.getattr

    def call(tracer: Any, module: Any, forward: Callable[..., Any], arguments: Any, named: Any) -> Any:
        if threading.current_thread() is thread:
            return noted(tracer, module, forward, arguments, named)
        return forward(*arguments, **named)

    def attribute(tracer: Any, name: str, value: Any, cache: Any) -> Any:
        return proxied(tracer, name, value, cache) if threading.current_thread() is thread else value

    tracers.call_module, tracers.getattr = call, attribute
    try:
        yield
    finally:
        tracers.call_module, tracers.getattr = noted, proxied

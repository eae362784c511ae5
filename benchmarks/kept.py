"""A generated program on disk, NAME.py, and beside it what it runs on, NAME.pt: it needs only torch."""

from __future__ import annotations

import contextlib
import importlib.util
import math
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import hbpcompiler as hbp

from .networks import Problem

CACHE = "HBP_CACHE_DIR"


@contextlib.contextmanager
def default_figures() -> Iterator[None]:
    """Meanwhile the library's cache is an empty folder: no figures of this machine, no routes that won a race."""
    known = os.environ.get(CACHE)
    with tempfile.TemporaryDirectory() as folder:
        os.environ[CACHE] = folder
        try:
            yield
        finally:
            if known is None:
                del os.environ[CACHE]
            else:
                os.environ[CACHE] = known


def title(network: str, batch: int, quantities: str) -> str:
    """A program's name; the quantities as in "diag_h+kflr"."""
    return f"{network}-{batch}-{quantities}"


def network_of(name: str) -> str:
    return name.rsplit("-", 2)[0]


def names(folder: Path) -> list[str]:
    """Of all programs there, sorted."""
    return sorted(file.stem for file in folder.glob("*.py"))


def keep(folder: Path, name: str, compiled: hbp.Compiled, given: Problem) -> Path:
    """Write a program and its arguments; says where the program is."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {key: tensor.detach() for key, tensor in compiled.state.items()}
    torch.save({"state": state, "batch": [given.inputs, given.target]}, folder / f"{name}.pt")
    return compiled.save(folder / f"{name}.py")


def arguments(file: Path) -> dict[str, Any]:
    """What the program in this file runs on: its state, and a batch."""
    return torch.load(file.with_suffix(".pt"))


def caller(file: Path, given: dict[str, Any]) -> Callable[[], Any]:
    """A call of the program in this file with such arguments."""
    spec = importlib.util.spec_from_file_location("program", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    program, state, batch = module.Program(), given["state"], given["batch"]

    def call() -> Any:
        with torch.no_grad():
            return program(state, *batch)

    return call


def lengths(text: str) -> tuple[int, int]:
    """How many lines, and how long the longest is."""
    lines = text.splitlines()
    return len(lines), max(map(len, lines))


def tensors(result: Any, path: str = "") -> dict[str, Tensor]:
    """All tensors in a program's result or arguments, by field, parameter and Kronecker factor."""
    if isinstance(result, Tensor):
        return {path: result}
    parts: dict[str, Any] = {}  # of None: a factor that a bias does not have
    if isinstance(result, dict):
        parts = result
    elif isinstance(result, list):
        parts = {str(number): part for number, part in enumerate(result)}
    elif result is not None:
        parts = result._asdict()
    found: dict[str, Tensor] = {}
    for name, part in parts.items():
        found |= tensors(part, f"{path} {name}".strip())
    return found


def difference(before: Tensor, after: Tensor) -> float:
    """The largest, relative to the largest entry; infinite if shapes or dtypes differ, or entries are not finite."""
    if before.shape != after.shape or before.dtype != after.dtype:
        return math.inf
    if torch.equal(before, after):
        return 0.0
    found = float((before.double() - after.double()).abs().max() / before.double().abs().max())
    return found if math.isfinite(found) else math.inf


def largest_difference(before: Any, after: Any) -> tuple[float, str]:
    """Of two results, and which tensor has it."""
    ours, theirs = tensors(before), tensors(after)
    if lonely := sorted(ours.keys() ^ theirs.keys()):
        return math.inf, f"only one has {', '.join(lonely)}"
    found = {path: difference(ours[path], theirs[path]) for path in ours}
    worst = max(found, key=lambda path: found[path])
    return found[worst], worst

"""Where in the user's code a node of the exported graph comes from."""

from __future__ import annotations

import os
import re
import sysconfig
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental import symbolic_shapes
from torch.fx.experimental.proxy_tensor import get_proxy_mode

import hbpcompiler.rules
from hbpcompiler.compiler.trace.graph import Source

_FOLDERS = (str(Path(torch.__file__).parent), str(Path(__file__).parents[3]), *hbpcompiler.rules.__path__)
LIBRARY = tuple(f"{folder}{os.sep}" for folder in _FOLDERS)
"""Frames below these folders are not the user's code, nor are those of Python's own library."""
OUTERMOST = str(Path(__file__).parents[1] / "export.py")
"""The file whose code calls the user's; frames above it are those of who called the compiler."""
STANDARD = sysconfig.get_paths()["stdlib"]
PICKED = "picked"
"""Of a node's meta: how many axes the mask has whose rows, and all others, it works on."""
FRAME = re.compile(r'File "(?P<file>[^"\n]+)", line (?P<line>\d+), in [^\n]+\n\s+(?P<code>[^\n]+)')


def is_library(file: str) -> bool:
    """Whether this is a file of torch's, Python's or this library's, or no file."""
    return of_python(file) or file.startswith((*LIBRARY, "<string>", "<frozen"))


def of_python(file: str) -> bool:
    """Whether this is a file of Python's standard library."""
    return file.startswith(STANDARD) and "-packages" not in file


class _Libraries:
    """All files whose code is not the user's, as a set; but for the one below which the user's code runs."""

    def __contains__(self, file: str) -> bool:
        return file != OUTERMOST and is_library(file)


@contextmanager
def sizes_by_users_lines() -> Iterator[None]:
    """Meanwhile torch notes with every condition on the batch's size the line of the user's code that it comes from."""
    torchs: Any = symbolic_shapes
    own = getattr(torchs, "uninteresting_files", None)
    if own is None:
        yield
        return
    torchs.uninteresting_files = _Libraries
    try:
        yield
    finally:
        torchs.uninteresting_files = own


class LossModule(nn.Module):
    """Makes a loss, module or plain function, recognisable in the traced graph and on the stack."""

    def __init__(self, loss: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = loss

    def forward(self, output: Any, target: Any) -> Any:
        return self.function(output, target)


def source_of(node: torch.fx.Node) -> Source:
    """The innermost module, and the innermost line of code outside torch and this library."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    path, kind = (str(stack[-1][0]), stack[-1][1]) if stack else ("", "")
    frames = [match.groupdict() for match in FRAME.finditer(node.meta.get("stack_trace") or "")]
    frames = [frame for frame in frames if not is_library(frame["file"])]
    frame: dict[str, Any] = frames[-1] if frames else {"file": "", "line": 0, "code": ""}
    in_loss = path == "loss" or path.startswith("loss.")
    owner, _, module = path.partition(".")
    kind = kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}"
    module = "" if owner != "model" or "@" in module else module
    return Source(module, "" if in_loss else kind, frame["file"], int(frame["line"]), frame["code"].strip(), in_loss,
                  _whole_operation(node), node.meta.get(PICKED, 0))


def _whole_operation(node: torch.fx.Node) -> str:
    """The operation as exported, before any decomposition; "" if it is unknown."""
    origin = (node.meta.get("from_node") or [None])[0]
    while origin is not None and origin.from_node:
        origin = origin.from_node[0]
    return str(origin.target).rpartition(".")[0] if origin is not None else ""


@contextmanager
def whole_stacks() -> Iterator[None]:
    """Meanwhile nodes keep all of the user's frames that they come from, not those of functions named forward alone."""
    mode = get_proxy_mode()
    tracer: Any = None if mode is None else mode.tracer
    if not hasattr(tracer, "_filter_traceback_frames"):
        yield
        return

    def users(stack: traceback.StackSummary) -> traceback.StackSummary:
        above = [number for number, frame in enumerate(stack) if frame.filename == OUTERMOST]
        return traceback.StackSummary.from_list([
            frame for frame in stack[above[-1] + 1 if above else 0 :]
            if frame.name == "forward" or not is_library(frame.filename)])

    tracer._filter_traceback_frames = users
    try:
        yield
    finally:
        del tracer._filter_traceback_frames

"""Where in the user's code a node of the exported graph comes from."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

import hbpcompiler.rules
from hbpcompiler.compiler.trace.graph import Source

LIBRARY = (str(Path(torch.__file__).parent), str(Path(__file__).parent), *hbpcompiler.rules.__path__)
"""Frames below these folders are not the user's code."""
FRAME = re.compile(r'File "(?P<file>[^"\n]+)", line (?P<line>\d+), in [^\n]+\n\s+(?P<code>[^\n]+)')


def source_of(node: torch.fx.Node) -> Source:
    """The innermost module, and the innermost line of code outside torch and this library."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    path, kind = (str(stack[-1][0]), stack[-1][1]) if stack else ("", "")
    frames = [match.groupdict() for match in FRAME.finditer(node.meta.get("stack_trace") or "")]
    frames = [frame for frame in frames if not frame["file"].startswith(LIBRARY)]
    frame: dict[str, Any] = frames[-1] if frames else {"file": "", "line": 0, "code": ""}
    in_loss = path == "loss" or path.startswith("loss.")
    owner, _, module = path.partition(".")
    kind = kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}"
    module = "" if owner != "model" or "@" in module else module
    return Source(module, "" if in_loss else kind, frame["file"], int(frame["line"]), frame["code"].strip(), in_loss,
                  _whole_operation(node))


def _whole_operation(node: torch.fx.Node) -> str:
    """The operation as exported, before any decomposition; "" if it is unknown."""
    origin = (node.meta.get("from_node") or [None])[0]
    while origin is not None and origin.from_node:
        origin = origin.from_node[0]
    return str(origin.target).rpartition(".")[0] if origin is not None else ""

"""Stage 7, load: write the file to the user's private cache and import it from there, so that debuggers find it."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

from hbpcompiler.system.cache import cache_folder, store


def write(code: str) -> Path:
    """Store the text under its own hash; a file is never half written."""
    path = cache_folder() / f"program_{hashlib.sha256(code.encode()).hexdigest()[:24]}.py"
    if not path.exists() or path.read_text(encoding="utf-8") != code:
        return store(path, code)
    return path


def load(code: str) -> tuple[ModuleType, Path]:
    """Import the program from its file."""
    path = write(code)
    spec = importlib.util.spec_from_file_location(f"hbpcompiler_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules[spec.name] = module  # torch.jit.script and pickle look classes up there
    spec.loader.exec_module(module)
    return module, path


def program(code: str) -> tuple[Any, Path]:
    """The loaded `Program()` and its file."""
    module, path = load(code)
    return module.Program(), path

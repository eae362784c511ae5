"""Stage 7, load: write the file to the user's private cache and import it from there, so that debuggers find it."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

from hbpcompiler.errors import CompileError


def cache_folder() -> Path:
    """$HBP_CACHE_DIR, or hbpcompiler in the user's cache folder; readable by nobody else."""
    chosen = os.environ.get("HBP_CACHE_DIR")
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = Path(chosen) if chosen else base / "hbpcompiler"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if os.name == "posix":
        status = folder.stat()
        if status.st_uid != os.getuid() or status.st_mode & 0o022:
            raise CompileError(f"the cache folder {folder} belongs to or is writable by others; programs are imported "
                               "from there, so set HBP_CACHE_DIR to a folder of your own (chmod 700)")
    return folder


def write(code: str) -> Path:
    """Store the text under its own hash; a file is never half written."""
    path = cache_folder() / f"program_{hashlib.sha256(code.encode()).hexdigest()[:24]}.py"
    if not path.exists() or path.read_text(encoding="utf-8") != code:
        store(path, code)
    return path


def store(path: Path, text: str) -> None:
    """Write a file as a whole or not at all."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(temporary, path)


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

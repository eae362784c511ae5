"""The folder of the user in which programs and measurements are kept."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

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


def store(path: Path, text: str) -> None:
    """Write a file as a whole or not at all."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(temporary, path)

"""The folder of the user in which programs and measurements are kept."""

from __future__ import annotations

import functools
import os
import tempfile
import warnings
from pathlib import Path

from hbpcompiler.errors import CacheWarning, CompileError


def cache_folder() -> Path:
    """$HBP_CACHE_DIR, or hbpcompiler in the user's cache folder; readable by nobody else.

    Where that cannot be written (a read-only disk, no home), a private temporary folder of this process, with a
    CacheWarning. Raises CompileError for a folder that others can write to.
    """
    chosen = os.environ.get("HBP_CACHE_DIR")
    try:
        folder = Path(chosen) if chosen else _of_user() / "hbpcompiler"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home
        return temporary_folder(str(error))
    if os.name == "posix" and (status.st_uid != os.getuid() or status.st_mode & 0o022):
        raise CompileError(f"the cache folder {folder} belongs to or is writable by others; programs are imported "
                           "from there, so set HBP_CACHE_DIR to a folder of your own (chmod 700)")
    if not os.access(folder, os.W_OK | os.X_OK):
        return temporary_folder(f"{folder} cannot be written")
    return folder


def _of_user() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


@functools.cache
def _temporary() -> tempfile.TemporaryDirectory[str]:
    """Removed when the process ends."""
    return tempfile.TemporaryDirectory(prefix="hbpcompiler-")  # created with mode 0700


def temporary_folder(reason: str) -> Path:
    """A private folder in place of the cache, with one warning that says why."""
    new = _temporary.cache_info().currsize == 0
    try:
        folder = Path(_temporary().name)
    except OSError as error:
        raise CompileError("programs must be written to a file to be imported, and neither the cache folder "
                           f"({reason}) nor a temporary one ({error}) can be written; set HBP_CACHE_DIR to a folder "
                           "of your own") from error
    if new:
        warnings.warn(f"the cache folder cannot be used ({reason}): programs of this process are kept in {folder} and "
                      "forgotten afterwards; set HBP_CACHE_DIR to a folder of your own", CacheWarning, stacklevel=2)
    return folder


def store(path: Path, text: str) -> Path:
    """Write a file as a whole or not at all; on a full disk in a temporary folder. Gives its path."""
    try:
        _write(path, text)
    except OSError as error:
        other = temporary_folder(str(error)) / path.name
        if other == path:
            raise CompileError(f"{path} cannot be written: {error}") from error
        _write(other, text)
        return other
    return path


def _write(path: Path, text: str) -> None:
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(temporary, path)

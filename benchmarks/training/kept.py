"""The runs that the repository keeps: one compressed file of readable lines, from which tables and pictures are made
again wherever the folder of results is lost.

A line is the content of one run's file (see `runs`), with numbers of six digits; the first line has the seconds that
steps took.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.training import seconds
from benchmarks.training.runs import FORMAT, Run, write

FILE = Path(__file__).with_name("results.jsonl.gz")
DIGITS = 6


def keep(folder: Path, file: Path = FILE) -> int:
    """Add a folder's runs to the file, in the place of what it has of the same; returns how many it has now."""
    known = {_run_of(content).path: content for content in _lines(file)}
    for path in sorted(folder.rglob("seed-*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["run"]["format"] == FORMAT:
            known[_run_of(content).path] = content
    lines = [{"seconds": {**_seconds(file), **_read(folder / seconds.FILE)}}, *(known[path] for path in sorted(known))]
    text = "".join(json.dumps(_rounded(line), allow_nan=False) + "\n" for line in lines)
    write(file, gzip.compress(text.encode(), mtime=0))  # no date: the same runs are the same file
    return len(known)


def restore(folder: Path, file: Path = FILE) -> int:
    """The file's runs as files of the folder, but for those that it has; returns how many there were to write."""
    count = 0
    for content in _lines(file):
        path = folder / _run_of(content).path
        if not path.exists():
            write(path, json.dumps(content, allow_nan=False).encode())
            count += 1
    if not (folder / seconds.FILE).exists():
        write(folder / seconds.FILE, json.dumps(_seconds(file)).encode())
    return count


def _run_of(content: dict[str, Any]) -> Run:
    run = content["run"]
    return Run(run["task"], run["method"], tuple(run["point"].items()), run["seed"], run["epochs"])


def _all_lines(file: Path) -> Iterator[dict[str, Any]]:
    if file.exists():
        for line in gzip.decompress(file.read_bytes()).decode().splitlines():
            yield json.loads(line)


def _lines(file: Path) -> Iterator[dict[str, Any]]:
    """Those of runs."""
    return (line for line in _all_lines(file) if "run" in line)


def _seconds(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = next((line["seconds"] for line in _all_lines(file) if "seconds" in line), {})
    return found


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return found


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    return [_rounded(each) for each in value] if isinstance(value, list) else value

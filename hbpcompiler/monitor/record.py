"""What a monitor knows of its run, in memory and in the log."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from hbpcompiler.errors import InputError
from hbpcompiler.runs import FORMAT, VERSION, Log, Run
from hbpcompiler.version import __version__


class Record:
    """Lines go to both. A log that is there already is gone on with, behind its last step."""

    def __init__(self, log: str | Path | None, name: str | None, parameters: Mapping[str, list[int]]) -> None:
        """InputError as from `Log`, and for a log of a model with other parameters."""
        self.log = None if log is None else Log(log)
        before = None if self.log is None else self.log.before
        if before is not None and set(before.header.get("parameters", {})) != set(parameters):
            raise InputError(f"the log {log} is of another model, with other parameters; give the path of a new file")
        self.run = Run("" if log is None else str(log)) if before is None else before
        self.name = name or ("run" if log is None else Path(log).stem)
        self.first_step = self.run.last_step + 1
        self._offset = self.run.last_time
        self._began = time.perf_counter()
        self._started = datetime.now(UTC).isoformat(timespec="seconds")
        self._has_header = False

    def holds_a_run(self) -> str:
        """The beginning of a sentence."""
        return "the monitor's log holds a run already" if self.log is None else f"{self.log.path} holds a run already"

    def elapsed(self) -> float:
        """Seconds of this process."""
        return time.perf_counter() - self._began

    def header(self, step: int, entries: Mapping[str, Any]) -> dict[str, str]:
        """Writes the header, or that the run is resumed, once; what is left out since the last time, by name."""
        known = self.run.header.get("left_out", {}) if self._has_header else {}
        new = {name: why for name, why in entries["left_out"].items() if name not in known}
        if not self._has_header:
            self._has_header = True
            if self.run.header:
                self._resume(entries)
            else:
                self._write({"kind": "header", "format": FORMAT, "version": VERSION, "name": self.name,
                             "started": self._started, "hbpcompiler": __version__,
                             "torch": torch.__version__, **entries})
        elif new:
            self._write({"kind": "left_out", "step": step, "time": self._time(), "values": new})
        return new

    def _resume(self, entries: Mapping[str, Any]) -> None:
        changed = {name: entries[name] for name in ("quantities", "left_out", "notes", "schedule")}
        self._write({"kind": "resumed", "step": self.first_step, "time": self._time(), "started": self._started,
                     **changed})

    def values(self, step: int, rows: int | None, values: Mapping[str, Any]) -> None:
        """Of a step; without `rows` what was not known yet when it was written."""
        line = {"kind": "step", "step": step, "time": self._time()}
        self._write({**line, **({} if rows is None else {"rows": rows}), "values": dict(values)})

    def scalars(self, step: int, values: Mapping[str, Any]) -> None:
        self._write({"kind": "scalars", "step": step, "time": self._time(), "values": dict(values)})

    def _time(self) -> float:
        return round(self._offset + self.elapsed(), 4)

    def _write(self, line: dict[str, Any]) -> None:
        self.run.enter(line)
        if self.log is not None:
            self.log.write(line)

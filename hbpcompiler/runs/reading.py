"""A run as its log tells it, also while the run goes on, and after it was killed."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hbpcompiler.errors import InputError
from hbpcompiler.runs.columns import Sharing
from hbpcompiler.runs.lines import decoded, numbers

FORMAT = "hbp-monitor"
VERSION = 1


@dataclass
class Step:
    """What was tracked at one step."""

    step: int
    time: float
    """Seconds since the run started."""
    rows: int | None
    """Samples of the batch."""
    values: dict[str, Any]
    """By quantity: a number, a mapping {parameter name: number}, or a histogram {"counts", "edges"}."""


@dataclass
class Scalars:
    """What `monitor.add` was given."""

    step: int
    time: float
    values: dict[str, Any]


@dataclass
class Run:
    """A run: its header, its steps in order, each once, the scalars that were added."""

    path: str = ""
    header: dict[str, Any] = field(default_factory=dict)
    by_step: dict[int, Step] = field(default_factory=dict)
    scalars: list[Scalars] = field(default_factory=list)
    resumed: list[dict[str, Any]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    """What could not be read, in words: a last line that is cut off, lines that are damaged."""
    end: int = 0
    """Bytes of the file that have been read, up to the last complete line."""
    sharing: Sharing = field(default_factory=Sharing, repr=False, compare=False)

    @property
    def name(self) -> str:
        return str(self.header.get("name", ""))

    @property
    def steps(self) -> list[Step]:
        return [self.by_step[number] for number in sorted(self.by_step)]

    @property
    def last_step(self) -> int:
        """The last step that anything is known of; -1 before the first."""
        return max([*self.by_step, *(scalars.step for scalars in self.scalars)], default=-1)

    @property
    def last_time(self) -> float:
        """Seconds, of the last line."""
        times = [step.time for step in self.by_step.values()] + [scalars.time for scalars in self.scalars]
        return max([*times, *(float(line.get("time", 0.0)) for line in self.resumed)], default=0.0)

    @property
    def names(self) -> list[str]:
        """What has values at some step, or was asked for."""
        asked = [*self.header.get("quantities", ()), *self.header.get("left_out", ())]
        entries = [step.values for step in self.steps] + [scalars.values for scalars in self.scalars]
        return list(dict.fromkeys([*map(str, asked), *(name for values in entries for name in values)]))

    def series(self, name: str) -> tuple[list[int], list[Any]]:
        """The steps at which a quantity, or a scalar that was added, is known, and its values there.

        Raises InputError where the run has steps and nothing is called so.
        """
        found = self.known(name)
        if not found[0] and (self.by_step or self.scalars) and name not in self.names:
            closest = difflib.get_close_matches(name, self.names, 1)
            meant = f"; did you mean {closest[0]!r}? It" if closest else ". It"
            raise InputError(f"this run has no {name!r}{meant} has {', '.join(self.names)}.")
        return found

    def known(self, name: str) -> tuple[list[int], list[Any]]:
        """The same; nothing where nothing is called so."""
        found = {scalars.step: scalars.values[name] for scalars in self.scalars if name in scalars.values}
        found |= {number: step.values[name] for number, step in self.by_step.items() if name in step.values}
        return sorted(found), [found[number] for number in sorted(found)]

    def enter(self, line: dict[str, Any]) -> None:
        """Takes in one line. ValueError, in words, for one that makes no sense."""
        kind = line["kind"]
        if kind == "header":
            self.header = dict(line)
        elif kind == "step":
            self._enter_step(line)
        elif kind == "scalars":
            self.scalars.append(Scalars(_step_of(line), _time_of(line), numbers(_values_of(line))))
        elif kind == "resumed":
            self._resume(line)
        elif kind == "left_out":
            left_out = {**self.header.get("left_out", {}), **_values_of(line)}
            tracked = [name for name in self.header.get("quantities", ()) if name not in left_out]
            self.header |= {"left_out": left_out, "quantities": tracked}
        else:
            raise ValueError(f"its kind {kind!r} is unknown")

    def _enter_step(self, line: dict[str, Any]) -> None:
        number, values = _step_of(line), {name: self.sharing.compact(value)
                                          for name, value in numbers(_values_of(line)).items()}
        known = self.by_step.get(number)
        if known is None:
            self.by_step[number] = Step(number, _time_of(line), line.get("rows"), values)
            return
        known.values |= values
        known.rows = line.get("rows", known.rows)

    def _resume(self, line: dict[str, Any]) -> None:
        """Steps that the resumed run takes again are forgotten."""
        first = _step_of(line)
        self.by_step = {number: step for number, step in self.by_step.items() if number < first}
        self.scalars = [scalars for scalars in self.scalars if scalars.step < first]
        self.resumed.append(dict(line))
        for name in ("quantities", "left_out", "notes", "schedule"):
            if name in line:
                self.header[name] = line[name]

    def refresh(self) -> bool:
        """Reads what the file has more than at the last time; whether there was anything.

        A file that is shorter than it was is read anew, line by line as always. InputError as from `read`.
        """
        before, rest = self.end, b""
        self.problems = [problem for problem in self.problems if not problem.startswith("the last line")]
        with _opened(self.path) as file:
            file.seek(0, 2)
            size = file.tell()
            if size < self.end:
                self._forget()
                before = 0
            file.seek(self.end)
            for line in file:
                if not line.endswith(b"\n"):
                    rest = line
                    break
                self._enter_text(line[:-1])
                self.end += len(line)
        if rest:
            self.problems.append("the last line is cut off: the run was writing it, or was killed")
        if not self.header:
            raise InputError(f"{self.path} is no log of hbp.Monitor: " + (
                "its first line is not complete" if rest else "it is empty"))
        return self.end > before

    def _forget(self) -> None:
        fresh = Run(self.path)
        for name, value in vars(fresh).items():
            setattr(self, name, value)

    def _enter_text(self, text: bytes) -> None:
        try:
            line = decoded(text)
            if not self.header:
                self._check_header(line)
            self.enter(line)
        except ValueError as error:
            if not self.header:
                raise InputError(f"{self.path} is no log of hbp.Monitor: of its first line, {error}") from None
            self.problems.append(f"a line behind byte {self.end} is left out: {error}")

    def _check_header(self, line: dict[str, Any]) -> None:
        if line["kind"] != "header" or line.get("format") != FORMAT:
            raise ValueError(f'it has not "kind": "header", "format": "{FORMAT}"')
        version = line.get("version")
        if not isinstance(version, int) or version < 1:
            raise ValueError(f"its version is {version!r}")
        if version > VERSION:
            raise ValueError(f"the version of the format is {version}, and this hbpcompiler reads up to {VERSION}: "
                             "install a newer one")


def read(path: str | Path) -> Run:
    """The run that a log tells of. It may still be going on: `Run.refresh` reads what has been added since.

    Lines of one step are merged. A last line that is cut off, or a damaged one, is left out and named in
    `Run.problems`. Raises InputError for what is no log: it says what is wrong with it.
    """
    run = Run(str(path))
    run.refresh()
    return run


def _opened(path: str) -> Any:
    try:
        return open(path, "rb")
    except OSError as error:
        raise InputError(f"the log {path} cannot be read: {error.strerror}") from error


def _step_of(line: dict[str, Any]) -> int:
    step = line.get("step")
    if not isinstance(step, int):
        raise ValueError(f"its step is {step!r}")
    return step


def _time_of(line: dict[str, Any]) -> float:
    time = line.get("time")
    if not isinstance(time, int | float):
        raise ValueError(f"its time is {time!r}")
    return float(time)


def _values_of(line: dict[str, Any]) -> dict[str, Any]:
    values = line.get("values")
    if not isinstance(values, dict):
        raise ValueError("it has no values")
    return values

"""What a report says: its instruments with their verdicts and curves, what stands out, what is left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from hbpcompiler.report.instruments import COLUMNS, Drawn, Instrument, of_ones_own
from hbpcompiler.report.layers import fields_by_layer, heatmaps, spread_of
from hbpcompiler.report.tracks import Track
from hbpcompiler.report.words import Verdict, number

TICKS = 400
"""Steps whose time a page knows; between them time is taken to be even."""


@dataclass
class Card:
    """An instrument with the runs on it."""

    instrument: Instrument
    drawn: list[Drawn | None]
    """By run."""


@dataclass(frozen=True)
class Finding:
    """A line of what stands out."""

    run: int
    links: list[tuple[str, str]]
    """Keys and titles of the instruments that say it."""
    text: str


@dataclass
class Contents:
    """All of a report but its looks."""

    runs: list[dict[str, Any]]
    """By run: its name, and lines (label, text) about it."""
    columns: dict[str, list[Card]] = field(default_factory=dict)
    layers: list[dict[str, Any]] = field(default_factory=list)
    layer_verdicts: list[Verdict | None] = field(default_factory=list)
    fields: list[dict[str, Any]] = field(default_factory=list)
    missing: list[tuple[str, str]] = field(default_factory=list)
    """Instruments that are left out, and why."""
    problems: list[tuple[str, str]] = field(default_factory=list)
    """What could not be read, by run."""

    @property
    def findings(self) -> list[Finding]:
        """What stands out, run by run; where instruments say the same it is said once."""
        said: dict[tuple[int, str], list[tuple[str, str]]] = {}
        for card in (card for cards in self.columns.values() for card in cards):
            link = (card.instrument.key, card.instrument.title)
            for run, drawn in enumerate(card.drawn):
                for verdict in drawn.verdicts if drawn is not None else ():
                    if verdict.notable:
                        said.setdefault((run, verdict.text), []).append(link)
        for run, spread in enumerate(self.layer_verdicts):
            if spread is not None and spread.notable:
                said.setdefault((run, spread.text), []).append(("layers", "Layers"))
        return [Finding(run, links, text) for (run, text), links in sorted(said.items(), key=lambda item: item[0][0])]

    def data(self) -> dict[str, Any]:
        """What the page draws."""
        charts = {card.instrument.key: _chart(card) for cards in self.columns.values() for card in cards}
        runs = [{"name": run["name"], "clock": run["clock"]} for run in self.runs]
        return {"runs": runs, "charts": charts, "layers": self.layers, "fields": self.fields}


def contents(tracks: Sequence[Track]) -> Contents:
    """Of a report of these runs, at least one."""
    found = Contents([{"name": track.name, "about": about(track), "clock": clock(track)} for track in tracks])
    for heading, instruments in COLUMNS.items():
        found.columns[heading] = []
        own = of_ones_own(tracks) if heading == "Context" else []
        for instrument in [*instruments, *own]:
            drawn = [instrument.draw(track) for track in tracks]
            if any(drawn):
                found.columns[heading].append(Card(instrument, drawn))
            else:
                found.missing.append((instrument.title, _why(instrument, tracks)))
    found.layers = heatmaps(tracks)
    found.fields = fields_by_layer(tracks)
    found.layer_verdicts = [spread_of(track) for track in tracks]
    if not found.layers:
        found.missing.append(("Layers", "no quantity by parameter was tracked"))
    found.problems = [(track.name, problem) for track in tracks for problem in track.run.problems]
    return found


def clock(track: Track) -> dict[str, list[int] | list[float]]:
    """Steps, at most so many and the first and last among them, and the seconds from the start of the run to each."""
    times = {scalars.step: scalars.time for scalars in track.run.scalars}
    times |= {number: step.time for number, step in track.run.by_step.items()}
    steps = sorted(times)
    if len(steps) > TICKS:
        steps = [steps[round(at * (len(steps) - 1) / (TICKS - 1))] for at in range(TICKS)]
    return {"steps": steps, "seconds": [round(times[step], 3) for step in steps]}


def about(track: Track) -> list[tuple[str, str]]:
    """The settings of a run, as its header and its steps tell them."""
    run, header = track.run, track.header
    optimizer = ", ".join(f"{name} {value}" for name, value in track.optimizer.items() if name != "name" and value)
    tracked = len(run.by_step)
    lines = [
        ("model", header.get("model")), ("loss", header.get("loss")),
        ("optimizer", f"{track.optimizer.get('name', '')} {optimizer}".strip()),
        ("parameters", f"{sum(track.sizes.values()):,} in {len(track.sizes)}" if track.sizes else None),
        ("schedule", header.get("schedule")),
        ("steps", f"{tracked:,} tracked, the last is {run.last_step:,}, after {number(run.last_time)} s"),
        ("started", header.get("started")),
        ("resumed", f"{len(run.resumed)} times" if run.resumed else None),
        ("notes", "; ".join(map(str, header.get("notes") or []))),
        ("versions", f"hbpcompiler {header.get('hbpcompiler', '?')}, torch {header.get('torch', '?')}"),
    ]
    return [(label, str(text)) for label, text in lines if text]


def _why(instrument: Instrument, tracks: Sequence[Track]) -> str:
    """What the headers say of what it needs."""
    reasons = dict.fromkeys(
        f"{name}: {track.header['left_out'][name]}" for track in tracks for name in instrument.needs
        if isinstance(track.header.get("left_out"), dict) and name in track.header["left_out"])
    return "; ".join(reasons) or f"needs {' or '.join(instrument.needs)}, which was not tracked"


def _chart(card: Card) -> dict[str, Any]:
    instrument = card.instrument
    lines = [{"label": line.label, "axis": line.axis, "role": line.role} for line in instrument.lines]
    return {"kind": instrument.kind, "title": instrument.title, "lines": lines, "options": instrument.options,
            "runs": [None if drawn is None else drawn.data for drawn in card.drawn]}

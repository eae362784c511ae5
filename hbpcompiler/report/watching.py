"""A run in the terminal, while it goes on: the instruments' words with their last values."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from hbpcompiler.errors import InputError
from hbpcompiler.report.instruments import COLUMNS, Instrument, of_ones_own
from hbpcompiler.report.layers import spread_of
from hbpcompiler.report.tracks import Series, Track
from hbpcompiler.report.words import Verdict, number
from hbpcompiler.runs import Run, Scalars, Step

BLOCKS = "▁▂▃▄▅▆▇█"
WIDTH, NARROW = 24, 10
"""Characters of a course, and of one in a narrow terminal."""
WIDE = 110
"""Columns of a terminal that is not narrow."""
TITLE, SHORT_TITLE = 34, 20
"""Most characters of an instrument's name."""
BETWEEN = 9
"""Characters between four columns."""
EVERY = 1.0
"""Seconds between two looks at the log."""
FIGURES = frozenset({"areas"})
"""Instruments that are pictures of another one's numbers."""


@dataclass(frozen=True)
class Row:
    """An instrument in a line."""

    title: str
    value: str
    course: str
    verdicts: tuple[Verdict, ...]


def watch(path: str | Path, *, console: Console | None = None, every: float = EVERY,
          stop: Callable[[Run], bool] | None = None) -> None:
    """Shows a log as a table that is renewed while the log grows; without a terminal, a line for each new step.

    Waits for a file that is not there yet or has no line; a last line that is half written waits for its end.
    Ctrl-C ends it.

    Args:
        path: log of `hbp.Monitor`.
        console: where to show it; standard output if None.
        every: seconds between two looks.
        stop: asked after each look; True ends.

    Raises:
        InputError: the file is there and is no log.
    """
    console = console or Console()
    if not _begun(Path(path)):
        console.out(f"waiting for {path}", highlight=False)
    looks = _looks(Path(path), every, stop)
    try:
        if console.is_terminal:
            with Live(console=console, auto_refresh=False) as live:
                _live(looks, live, console)
        else:
            _lines(looks, console)
    except KeyboardInterrupt:
        pass


def _live(looks: Iterator[Run], live: Live, console: Console) -> None:
    """What the terminal has room for; at the end, also at Ctrl-C, all of it."""
    last = None
    try:
        for last in looks:
            live.update(view(last, console.width, console.height), refresh=True)
    finally:
        if last is not None:
            live.update(view(last, console.width))


def _looks(path: Path, every: float, stop: Callable[[Run], bool] | None) -> Iterator[Run]:
    """The run each time that its log has grown; first as it is. Looking takes a tenth of one core's time at most."""
    run = Run(str(path))
    while True:
        before = time.process_time()
        if _begun(path) and run.refresh():
            yield run
        if stop is not None and stop(run):
            return
        time.sleep(max(every, 9 * (time.process_time() - before)))


def _begun(path: Path) -> bool:
    """Whether the log's first line is whole."""
    try:
        with path.open("rb") as file:
            return file.readline().endswith(b"\n")
    except FileNotFoundError:
        return False
    except OSError as error:
        raise InputError(f"the log {path} cannot be read: {error.strerror}") from error


def _lines(looks: Iterator[Run], console: Console) -> None:
    """One line for each new step that has a number, another where later lines of the log add to it, and what stands out
    when that changes. A user's own numbers have lines of theirs, as they can come at a step that is not tracked."""
    tracked: dict[int, set[str]] = {}
    added: dict[int, set[str]] = {}
    said: set[str] = set()
    for run in looks:
        lines = [*_news(run.steps, tracked), *_news(run.scalars, added)]
        for _, line in sorted(lines, key=lambda line: line[0]):
            console.out(printable(line), highlight=False)
        for row in rows(Track(run)):
            for verdict in row.verdicts:
                if verdict.notable and verdict.text not in said:
                    said.add(verdict.text)
                    console.out(printable(f"! {row.title}: {verdict.text}"), highlight=False)


def _news(entries: Sequence[Step | Scalars], shown: dict[int, set[str]]) -> list[tuple[int, str]]:
    """Lines, behind their steps, with the numbers that were not shown yet, from the last step on that was."""
    lines = []
    latest = max(shown, default=-1)
    for entry in entries:
        if entry.step < latest:
            continue
        names = shown.setdefault(entry.step, set())
        numbers = {name: number(value, 4) for name, value in entry.values.items()
                   if isinstance(value, int | float) and name not in names}
        names |= set(numbers)
        if numbers:
            words = [f"step {entry.step}", f"{entry.time:.1f} s", *map(" ".join, numbers.items())]
            lines.append((entry.step, "  ".join(words)))
    return lines


def view(run: Run, width: int, height: int | None = None) -> RenderableType:
    """The run as a table, one line an instrument.

    Words that need more lines have them, unless a height is given that is not enough for these: then they are cut off.
    """
    table = _table(run, width, whole=True)
    if height is not None and _height(table, width) > height:
        table = _table(run, width, whole=False)
    return table


def _height(shown: RenderableType, width: int) -> int:
    console = Console(width=width, file=io.StringIO())
    return len(console.render_lines(shown, pad=False))


def _table(run: Run, width: int, whole: bool) -> RenderableType:
    track, wide = Track(run), width >= WIDE
    title = Text(printable(track.name))
    table = Table(expand=False, title=title, title_justify="left", show_edge=False, pad_edge=False)
    longest, course = (TITLE, WIDTH) if wide else (SHORT_TITLE, NARROW)
    table.add_column("instrument", no_wrap=True, overflow="ellipsis", max_width=longest)
    table.add_column("now", justify="right", no_wrap=True)
    table.add_column("course", no_wrap=True)
    table.add_column("in words", overflow="fold", ratio=1)
    shown = rows(track, course)
    room = width - longest - course - BETWEEN - max((len(row.value) for row in shown), default=0)
    for row in shown:
        words = Text()
        for index, verdict in enumerate(row.verdicts):
            style = "bold yellow" if verdict.notable else ""
            words.append(("; " if index else "") + printable(verdict.text), style=style)
        if not whole:
            words.truncate(max(1, room), overflow="ellipsis")
        table.add_row(Text(printable(row.title)), Text(row.value), Text(row.course, style="cyan"), words)
    left_out = run.header.get("left_out")
    below = [f"step {run.last_step}, {number(run.last_time)} s, {len(run.by_step)} steps tracked"]
    if isinstance(left_out, dict) and left_out:
        below.append(f"left out: {', '.join(left_out)}")
    return Group(table, Text(printable("; ".join([*below, *run.problems])), style="dim"))


def printable(text: str) -> str:
    """Without characters that a terminal obeys, which names of a run may hold."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


def rows(track: Track, width: int = WIDTH) -> list[Row]:
    """The instruments that have something, in the order of the page, with courses of so many characters."""
    found = []
    for heading, instruments in COLUMNS.items():
        own = of_ones_own([track]) if heading == "Context" else []
        found += [row for instrument in [*instruments, *own] if (row := _row(instrument, track, width)) is not None]
    if (verdict := spread_of(track)) is not None:
        found.append(Row("Layers", "", "", (verdict,)))
    return found


def _row(instrument: Instrument, track: Track, width: int) -> Row | None:
    if instrument.key in FIGURES:
        return None
    drawn = instrument.draw(track)
    if drawn is None:
        return None
    series = next((found for name in instrument.needs if len(found := track.series(name))), None)
    if series is None:
        return Row(instrument.title, "", "", drawn.verdicts)
    return Row(instrument.title, number(series.values[-1].item()), course(series, width), drawn.verdicts)


def course(series: Series, width: int = WIDTH) -> str:
    """A series in blocks from its least to its largest; a cross where a value is not finite."""
    parts = series.values.tensor_split(min(width, len(series)))
    middles = [part.median().item() for part in parts]
    finite = series.finite.values
    if not len(finite):
        return "x" * len(middles)
    ordered = [part[part.isfinite()].median().item() for part in parts if bool(part.isfinite().any())]
    low, high = min(ordered), max(ordered)
    return "".join(_block(middle, low, high) for middle in middles)


def _block(value: float, low: float, high: float) -> str:
    if not low <= value <= high:
        return "x"
    return BLOCKS[round((len(BLOCKS) - 1) * (value - low) / (high - low))] if high > low else BLOCKS[3]

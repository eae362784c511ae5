"""A report as one file of HTML that needs nothing else: styles, scripts, the plotting library and all numbers in it."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from hbpcompiler.errors import InputError, OptionError
from hbpcompiler.report.contents import Contents, contents
from hbpcompiler.report.tracks import tracks_of
from hbpcompiler.runs import Run, read
from hbpcompiler.version import __version__

SCRIPTS = ("look.js", "series.js", "pictures.js", "layers.js", "page.js")
"""Of the page, in the order in which they are run."""
ENDINGS = ("", ".html", ".htm")
"""Of the page's name."""


def report(logs: str | Path | Run | Sequence[str | Path | Run], path: str | Path = "report.html") -> Path:
    """Writes a page about one run or several of them, to be opened in a browser; nothing else is needed to read it.

    What is tracked is drawn in three columns (step size, gradients, curvature), with the context, and layers against
    steps; each instrument says in one line, with its number, what it shows. Runs share every instrument. Instruments
    whose quantities no run has are left out and named at the end.

    Args:
        logs: files that `hbp.Monitor` writes, also while it does, folders of such (*.jsonl), or what
            `hbpcompiler.runs.read` made of them.
        path: file to write, a .html; one that is there is replaced.

    Returns:
        The path.

    Raises:
        InputError: a log cannot be read or is none; every one is named. The page cannot be written, would replace
            a log, or is called as another kind of file.
        OptionError: plotly is missing: `pip install 'hbpcompiler[report]'`.
    """
    target = Path(path)
    runs = _read(logs_in([logs] if isinstance(logs, str | Path | Run) else list(logs)))
    if any(Path(run.path).resolve() == target.resolve() for run in runs):
        raise InputError(f"path: {target} is one of the logs; name another file for the page")
    if target.suffix.lower() not in ENDINGS:
        raise InputError(f"path: {target} is no name for a page of HTML, which a report is; call it "
                         f"{target.with_suffix('.html')}")
    library = _library()
    text = page(contents(tracks_of(runs)), library)
    beside = target.with_name(target.name + ".part")
    try:
        beside.write_text(text, encoding="utf-8")
        os.replace(beside, target)
    except OSError as error:
        raise InputError(f"path: {target} cannot be written: {error.strerror}") from error
    return target


def logs_in(logs: Sequence[str | Path | Run]) -> list[str | Path | Run]:
    """The logs, and in the place of folders those that lie in them. InputError for a folder of none."""
    found: list[str | Path | Run] = []
    for log in logs:
        if isinstance(log, Run) or not Path(log).is_dir():
            found.append(log)
            continue
        inside = sorted(Path(log).glob("*.jsonl"))
        if not inside:
            raise InputError(f"the folder {log} holds no log, a file *.jsonl that hbp.Monitor wrote")
        found += inside
    return found


def page(found: Contents, library: str) -> str:
    """The file's text.

    Args:
        found: what the report says.
        library: plotly.js.
    """
    environment = Environment(loader=PackageLoader("hbpcompiler.report", "page"), autoescape=True, trim_blocks=True,
                              lstrip_blocks=True, undefined=StrictUndefined)
    template = environment.get_template("page.html.jinja")
    return template.render(found=found, version=__version__, data=embedded(found.data()), library=Markup(library),
                           style=_file("style.css"), scripts=[_file(name) for name in SCRIPTS])


def embedded(data: Any) -> Markup:
    """JSON that may stand in a script of HTML: no text of a run can end the script, or begin a comment."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"), ensure_ascii=True)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _file(name: str) -> Markup:
    """A file of the page."""
    return Markup((Path(__file__).parent / "page" / name).read_text(encoding="utf-8"))


def _library() -> str:
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise OptionError("a report is drawn by plotly, which is not installed: pip install 'hbpcompiler[report]'. "
                          "`hbp watch` shows a run in the terminal without it") from error
    return str(get_plotlyjs())


def _read(logs: Sequence[str | Path | Run]) -> list[Run]:
    """All of them; InputError names each that cannot be read."""
    if not logs:
        raise InputError("logs: there is no log to report on; give the path of a file that hbp.Monitor wrote")
    runs, wrong = list[Run](), list[str]()
    for log in logs:
        try:
            runs.append(log if isinstance(log, Run) else read(log))
        except InputError as error:
            wrong.append(str(error))
    if wrong:
        raise InputError("; ".join(wrong))
    return runs

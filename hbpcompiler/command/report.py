"""`hbp report` and `hbp watch`: what logs of runs tell, as a page and in the terminal."""

from __future__ import annotations

from pathlib import Path

import click

from hbpcompiler.command.imported import clean_errors
from hbpcompiler.report import report
from hbpcompiler.report.watching import watch
from hbpcompiler.report.writing import logs_in
from hbpcompiler.runs import read


@click.command("report")
@click.argument("logs", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="LOG...")
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), default=Path("report.html"),
              show_default=True, metavar="FILE", help="The page to write.")
def report_command(logs: tuple[Path, ...], output: Path) -> None:
    """Write one page of HTML about the runs of LOGs, which hbp.Monitor has written: files, or folders of *.jsonl.

    \b
    hbp report run.jsonl
    hbp report small.jsonl large.jsonl -o comparison.html
    hbp report runs -o runs.html
    """
    with clean_errors():
        found = logs_in(logs)
        report(found, output)
    size = output.stat().st_size / 1e6
    click.echo(f"{output}: {len(found)} {'run' if len(found) == 1 else 'runs'}, {size:.1f} MB; open it in a browser")


@click.command("watch")
@click.argument("log", type=click.Path(path_type=Path), metavar="LOG")
@click.option("--once", is_flag=True, help="Show the log as it is now, and end.")
def watch_command(log: Path, once: bool) -> None:
    """Show a run while it goes on: a table that is renewed; plain lines where there is no terminal.

    \b
    hbp watch run.jsonl
    """
    with clean_errors():
        if once:
            read(log)  # what is missing is worth no waiting
        watch(log, stop=(lambda run: True) if once else None)

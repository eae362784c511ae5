"""`python -m zoo`: asks every family, each in a process of its own, and writes the table of docs/zoo.md.

    python -m zoo                          all families (an hour or two on 2 cores)
    python -m zoo timm:xcit transformers:  those whose title contains one of these texts
    python -m zoo --missing                goes on where it was stopped
    python -m zoo --table                  only writes the table anew

What became of each question is kept in zoo/records.jsonl, so that a run of a few families changes their rows alone.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import click
from rich.console import Console

from .apart import MEMORY, asked_apart, every_family, file_of
from .kept import keep, restore
from .questions import QUESTIONS
from .table import page

PAGE = Path("docs/zoo.md")


@click.command()
@click.argument("wanted", nargs=-1)
@click.option("--question", "questions", type=click.Choice(list(QUESTIONS)), multiple=True, help="only this one")
@click.option("--limit", default=180.0, help="seconds of a processor that one question to one family may take")
@click.option("--memory", default=MEMORY, help="GiB of addresses that its process may take")
@click.option("--processes", default=2)
@click.option("--table", "only_table", is_flag=True, help="only write the page from the records that there are")
@click.option("--missing", is_flag=True, help="only what there is no record of")
def main(wanted: tuple[str, ...], questions: tuple[str, ...], limit: float, memory: float, processes: int,
         only_table: bool, missing: bool) -> None:
    """Families of torchvision, timm and transformers against autograd."""
    families = every_family()
    restore()
    if not only_table:
        chosen = [family for family in families if not wanted or any(text in family.title for text in wanted)]
        jobs = [(family.title, question) for family in chosen for question in questions or QUESTIONS
                if not (missing and file_of(family.title, question).exists())]
        _ask_all(jobs, limit, memory, processes)
    records = keep()
    PAGE.write_text(page(records, [family.title for family in families]), encoding="utf-8")


def _ask_all(jobs: list[tuple[str, str]], limit: float, memory: float, processes: int) -> None:
    console = Console()
    with ThreadPoolExecutor(processes) as pool:
        outcomes = pool.map(lambda job: asked_apart(*job, limit, memory), jobs)
        for (title, question), outcome in zip(jobs, outcomes, strict=True):
            console.print(f"{title:45} {question:16} {outcome.status:8} {outcome.seconds:6.1f} s  "
                          f"{' '.join(outcome.text.split())[:300]}", soft_wrap=True, highlight=False, markup=False)


if __name__ == "__main__":
    main()

"""Calls that take long: what is said before they start, and what is shown while they run."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from tqdm import tqdm

from hbpcompiler.compiler.built import Built
from hbpcompiler.compiler.cost.figures import DEFAULTS
from hbpcompiler.compiler.cost.rounds import Reporting, rounds_of
from hbpcompiler.compiler.stages import STAGES
from hbpcompiler.compiler.trace.batch import Batch
from hbpcompiler.errors import LongCallWarning, listing
from hbpcompiler.quantities import SAMPLED
from hbpcompiler.system.callers import has_stderr, level_of_caller

IMAGE_AXES = 4
"""Of a batch of images, the last two of which are height and width."""
BAR = "{l_bar}{bar}| {elapsed}<{remaining}"

TIMES = 10
"""A program that took long to make is made again, for what a call is compared with, where the call itself takes so many
times as long."""

Other = Callable[[Sequence[str], Batch], float]
"""The predicted seconds of a call of the same model for these quantities, with another batch."""


def announce(built: Built, batch: Batch, model: str, other: Other) -> None:
    """Warns, once for each batch size, of a call that is predicted to take long, with what would take less."""
    cost, quantities = built.draft.cost, built.draft.plan.quantities
    if batch.samples in built.announced or not cost.is_long(batch.samples):
        return
    built.announced.add(batch.samples)
    figures = "the default figures (`hbp tune` measures this machine)" if cost.machine in DEFAULTS else (
        "figures that `hbp tune` measured")
    seconds = seconds_of(built, batch.samples)
    head = (f"this call is predicted to take about {in_words(seconds)}: "
            f"{', '.join(quantities)} of {model}, N={batch.samples}, by {figures}. Predicted beside it:")
    findings = _fewer(built, batch)
    made = sum(built.seconds.of[stage] for stage in STAGES if stage in built.seconds.of)
    if made <= max(cost.limits.remade_seconds, seconds / TIMES):
        findings += [*_sampled(quantities, batch, other), *_smaller(quantities, batch, other)]
    warnings.warn(listing(head, findings or ["nothing that takes less"], "compiled.explain() says where the time goes; "
                          "hbp.Limits(announced_seconds=...) from where on this is said"),
                  LongCallWarning, stacklevel=level_of_caller())


def seconds_of(built: Built, samples: int) -> float:
    """What a call with so many samples is predicted to take."""
    return sum(built.draft.cost.seconds(samples).values())


def _fewer(built: Built, batch: Batch) -> list[str]:
    return [f"one sample: {in_words(seconds_of(built, 1))}"] if batch.samples > 1 else []


def _sampled(quantities: Sequence[str], batch: Batch, other: Other) -> list[str]:
    """What the estimates of exact quantities take, where there are some."""
    names = tuple(dict.fromkeys(SAMPLED.get(name, name) for name in quantities))
    exact = [name for name in quantities if name in SAMPLED]
    estimates = dict.fromkeys(SAMPLED[name] for name in exact)
    seconds = _tried(other, names, batch) if exact else None
    return [] if seconds is None else [f"{', '.join(estimates)}, sampled, in place of {', '.join(exact)}: "
                                       f"{in_words(seconds)}"]


def _smaller(quantities: Sequence[str], batch: Batch, other: Other) -> list[str]:
    """What images of half the height and width take, where the model takes such."""
    tensors = [tensor[..., ::2, ::2] if tensor.dim() == IMAGE_AXES else tensor for tensor in batch.tensors]
    if all(small is tensor for small, tensor in zip(tensors, batch.tensors, strict=True)):
        return []
    seconds = _tried(other, quantities, replace(batch, tensors=tuple(tensors)))
    return [] if seconds is None else [f"images of half the height and width: {in_words(seconds)}"]


def _tried(other: Other, quantities: Sequence[str], batch: Batch) -> float | None:
    """None where such a program cannot be had: what is said beside a warning stops no call."""
    try:
        return other(quantities, batch)
    except Exception:
        return None


def in_words(seconds: float) -> str:
    """45 s, 12 minutes, 3.4 hours, 2.1 days."""
    if seconds < 0.95:
        return f"{seconds:.2g} s"
    for most, each, unit in ((90, 1, "s"), (5400, 60, "minutes"), (172800, 3600, "hours")):
        if seconds < most:
            return f"{seconds / each:.0f} {unit}" if seconds >= 9.5 * each else f"{seconds / each:.1f} {unit}"
    return f"{seconds / 86400:.1f} days"


@contextmanager
def shown(built: Built, samples: int) -> Iterator[None]:
    """While a long call of the program runs: a bar, where there is a terminal or a notebook to show it.

    The program's own module has another `range` meanwhile. Programs that are scripted or compiled have no bar.
    """
    if built.backend != "python" or not _has_viewer() or not built.draft.cost.is_long(samples):
        yield
        return
    with _bar() as bar:
        with reporting(built, samples, lambda share: bar.update(share - bar.n)):
            yield
        bar.update(1 - bar.n)


@contextmanager
def reporting(built: Built, samples: int, report: Callable[[float], None]) -> Iterator[None]:
    """Within it, this thread's calls of the program report how much of one is done, from 0 to 1."""
    names: dict[str, Any] = type(built.program).forward.__globals__
    if "range" in names:  # another call shows a bar
        yield
        return
    cost = built.draft.cost
    own = Reporting(rounds_of(built.draft.memory, samples, cost.machine, cost.limits), report).rounds
    if names.setdefault("range", own) is not own:  # another thread's call has begun meanwhile, and takes its own away
        yield
        return
    try:
        yield
    finally:
        del names["range"]


def _has_viewer() -> bool:
    """Whether there is a terminal or a notebook."""
    is_terminal = getattr(sys.stderr, "isatty", None)  # what writes to a log may have none
    return has_stderr() and ("ipykernel" in sys.modules or (is_terminal is not None and is_terminal()))


def _bar() -> Any:
    return tqdm(total=1.0, desc="hbpcompiler", bar_format=BAR, miniters=0)

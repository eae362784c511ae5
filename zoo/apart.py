"""One question to one family, in a process of its own, so that one that takes all memory or all time takes nobody with
it."""

from __future__ import annotations

import json
import multiprocessing
import resource
import signal
from datetime import date
from pathlib import Path

from . import timm_families, torchvision_families, transformers_families
from .family import Family
from .questions import Outcome, as_record, ask

RECORDS = Path("build/zoo")
ASLEEP = 20
"""Times the limit that a process may take of the clock's time."""
MEMORY = 16.0
"""GiB that one family's process may take, the libraries' own addresses included."""
PROCESSES = multiprocessing.get_context("forkserver")
"""Each is forked off one that has imported the three libraries, which takes longer than most questions."""
PROCESSES.set_forkserver_preload(["zoo.apart", "torchvision", "timm", "transformers"])


def every_family() -> list[Family]:
    return [*torchvision_families.families(), *timm_families.families(), *transformers_families.families()]


def file_of(title: str, question: str) -> Path:
    """The record of what became of a question."""
    return RECORDS / f"{title}-{question}.json".replace(":", "-").replace(", ", "-").replace(" ", "-")


def asked_apart(title: str, question: str, limit: float, memory: float = MEMORY) -> Outcome:
    """What became of it; `limit` is in seconds of a processor, so that a busy machine does not make families slow,
    `memory` in GiB."""
    path = file_of(title, question)
    path.unlink(missing_ok=True)
    process = PROCESSES.Process(target=_ask_here, args=(title, question, limit, memory))
    process.start()
    process.join(ASLEEP * limit)
    is_asleep = process.is_alive()
    if is_asleep:
        process.kill()
        process.join()
    if is_asleep or process.exitcode == -signal.SIGXCPU:
        outcome = Outcome("slow", limit, f"not done in {limit:.0f} s of a processor")
    elif path.exists():
        record = json.loads(path.read_text())
        return Outcome(record["status"], record["seconds"], record["text"])
    else:
        outcome = Outcome("crashes", 0.0, f"process ended with {process.exitcode}")
    path.write_text(json.dumps({"family": title, "question": question, "asked": date.today().isoformat(),
                                **vars(outcome)}))
    return outcome


def _ask_here(title: str, question: str, limit: float, memory: float) -> None:
    most, seconds = int(memory * 2**30), int(limit)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
    (family,) = [family for family in every_family() if family.title == title]
    file_of(title, question).write_text(json.dumps(as_record(family, question, ask(family, question))))

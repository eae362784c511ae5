"""One run of training: what is asked for, what is measured after each epoch, and the file that it ends in."""

from __future__ import annotations

import functools
import io
import json
import math
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import hbpcompiler as hbp
from benchmarks.training.data import Data, Part
from benchmarks.training.methods import METHODS, Point, Step
from benchmarks.training.tasks import ALL

FORMAT = "hbpcompiler training run 1"
CHECKPOINT_EVERY = 30.0
"""Seconds; a run that is interrupted goes on from its last checkpoint."""
EVALUATED = 1000
"""Samples at a time."""
PARTS = ("train", "valid", "test")


@dataclass(frozen=True)
class Run:
    """A task, an optimizer, a point of its grid, a seed: of the initial weights and of the batches."""

    task: str
    method: str
    point: Point
    seed: int
    epochs: int

    @property
    def path(self) -> Path:
        """Of its file in the folder of results."""
        point = ",".join(f"{name}={value:g}" for name, value in self.point)
        return Path(self.task, self.method, point, f"seed-{self.seed}.json")

    @property
    def text(self) -> str:
        point = ", ".join(f"{name} {value:g}" for name, value in self.point)
        return f"{self.task}, {self.method}, {point}, seed {self.seed}"


@dataclass
class Record:
    """What came of a run. Lists have a number before the first epoch and after each."""

    loss: dict[str, list[float]]
    """Mean over the samples of "train", "valid" and "test"."""
    accuracy: dict[str, list[float]]
    diverged: bool = False
    """The loss was not finite any more: the lists end there."""
    seconds: float = 0.0
    """Of this processor, for the steps alone; of no worth as a record where other processes ran beside."""

    @property
    def epochs(self) -> int:
        return len(self.loss["train"]) - 1


# -- files -------------------------------------------------------------------------------------------------------------


def write(path: Path, content: bytes) -> None:
    """The whole file or none of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(content)
    os.replace(temporary, path)


def header(run: Run) -> dict[str, Any]:
    """What a file must agree with to be this run's."""
    task = ALL[run.task]
    return {"format": FORMAT, "task": run.task, "method": run.method, "point": dict(run.point), "seed": run.seed,
            "epochs": run.epochs, "batch": task.batch}


def saved(run: Run, folder: Path) -> Record | None:
    """The record in the run's file, or None where there is none, or one of other epochs or batches."""
    try:
        found = json.loads((folder / run.path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if found.get("run") != header(run):
        return None
    return Record(**found["record"])


def save(run: Run, record: Record, folder: Path) -> None:
    content = {"run": header(run), "hbpcompiler": hbp.__version__, "torch": torch.__version__,
               "record": asdict(record)}
    write(folder / run.path, json.dumps(content, allow_nan=False).encode())


# -- training ----------------------------------------------------------------------------------------------------------


class Contestant:
    """A model with an optimizer, which every run of them begins anew: programs are compiled once."""

    def __init__(self, task: str, method: str) -> None:
        self.task, self.method = ALL[task], METHODS[method]
        self.data: Data = self.task.data()
        self.loss = nn.CrossEntropyLoss()
        self.model = self.task.model(0)
        self.optimizer = self.method.make(self.model, self.loss)
        self.step: Step = self.method.step(self.model, self.loss, self.optimizer)
        self._untouched = _bytes(self.optimizer.state_dict())

    def begin(self, point: Point, seed: int) -> None:
        """Initial weights of the seed, and an optimizer that has made no step."""
        self.model.load_state_dict(self.task.model(seed).state_dict())
        self.load(_read(self._untouched))
        numbers = self.method.numbers(dict(point))
        for group in self.optimizer.param_groups:
            group.update(numbers)

    def load(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state)
        for parameter in self.model.parameters():
            parameter.grad = None

    def batches(self, seed: int, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The same for every optimizer. What does not fill a batch waits for another epoch."""
        train = self.data.train
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(1000 * seed + epoch))
        for rows in order.split(self.task.batch):
            if len(rows) == self.task.batch:
                yield train.X[rows], train.y[rows]

    def epoch(self, seed: int, epoch: int) -> bool:
        """Whether the loss stayed finite."""
        for X, y in self.batches(seed, epoch):
            try:
                value = self.step(X, y)
            except (RuntimeError, hbp.HbpError):
                if self.finite():
                    raise
                return False
            if not math.isfinite(float(value)):
                return False
        return self.finite()

    def finite(self) -> bool:
        return all(bool(parameter.isfinite().all()) for parameter in self.model.parameters())

    @torch.no_grad()
    def evaluate(self, part: Part) -> tuple[float, float]:
        """Mean loss and accuracy."""
        loss, right = 0.0, 0
        for X, y in zip(part.X.split(EVALUATED), part.y.split(EVALUATED), strict=True):
            outputs = self.model(X)
            loss += float(nn.functional.cross_entropy(outputs, y, reduction="sum"))
            right += int((outputs.argmax(1) == y).sum())
        return loss / len(part), right / len(part)

    def look(self, record: Record) -> bool:
        """Append what the model is worth now; False, and nothing appended, where its loss is not finite."""
        found = {name: self.evaluate(getattr(self.data, name)) for name in PARTS}
        if not all(math.isfinite(loss) for loss, _ in found.values()):
            return False
        for name, (loss, accuracy) in found.items():
            record.loss[name].append(loss)
            record.accuracy[name].append(accuracy)
        return True


@functools.lru_cache(maxsize=128)
def contestant(task: str, method: str) -> Contestant:
    return Contestant(task, method)


def train(run: Run, folder: Path, *, every: float = CHECKPOINT_EVERY) -> Record:
    """The run's record: from its file, or trained, from the last checkpoint if there is one."""
    done = saved(run, folder)
    if done is not None:
        return done
    path = (folder / run.path).with_suffix(".checkpoint")
    one = contestant(run.task, run.method)
    record = _resumed(run, one, path)
    last = time.monotonic()
    for epoch in range(record.epochs, run.epochs):
        start = time.process_time()
        finite = one.epoch(run.seed, epoch)
        record.seconds += time.process_time() - start
        if not (finite and one.look(record)):
            record.diverged = True
            break
        if time.monotonic() - last > every:
            write(path, _bytes({"run": header(run), "record": asdict(record), "model": one.model.state_dict(),
                                "optimizer": one.optimizer.state_dict()}))
            last = time.monotonic()
    save(run, record, folder)
    path.unlink(missing_ok=True)
    return record


def _resumed(run: Run, one: Contestant, path: Path) -> Record:
    """The record so far, with model and optimizer where it left them."""
    one.begin(run.point, run.seed)
    if path.exists():
        state = _read(path.read_bytes())
        if state["run"] == header(run):
            one.model.load_state_dict(state["model"])
            one.load(state["optimizer"])
            return Record(**state["record"])
    record = Record({name: [] for name in PARTS}, {name: [] for name in PARTS})
    one.look(record)
    return record


def _bytes(state: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def _read(content: bytes) -> dict[str, Any]:
    found: dict[str, Any] = torch.load(io.BytesIO(content), weights_only=True)
    return found

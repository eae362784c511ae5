"""A forward pass of the model on one batch, beside the user's own: nothing of theirs changes, draws are fixed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from random import Random
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from hbpcompiler.compiler.prove.double import AtOutputs, twice_differentiable
from hbpcompiler.compiler.prove.draws import Draws, drawing
from hbpcompiler.compiler.prove.own_step import Loss, Pass, copied_buffers, forward, ordinary_mode, unchanged
from hbpcompiler.compiler.trace.batch import Batch
from hbpcompiler.compiler.trace.checks import complaint_of
from hbpcompiler.compiler.trace.containers import Structure
from hbpcompiler.errors import BatchDoesNotFitError, HbpError

Found = TypeVar("Found")


@dataclass(frozen=True)
class Passes:
    """Runs of one model and loss; its parameters are read at each run, those that are chosen as variables."""

    model: nn.Module
    loss: Loss
    chosen: tuple[str, ...]
    seed: int

    def variables(self) -> dict[str, Tensor]:
        """The chosen parameters' values now, as leaves that derivatives are taken in."""
        parameters = dict(self.model.named_parameters())
        return {name: parameters[name].detach().clone().requires_grad_() for name in self.chosen}

    def run(self, batch: Batch, variables: Mapping[str, Tensor], finish: Callable[[Pass], Found]) -> Found:
        """`finish` of a pass with these in place of the parameters."""
        return forward(self.model, self.loss, batch, {**self._fixed(variables), **variables}, finish)

    def outputs(self, batch: Batch, variables: Mapping[str, Tensor]) -> tuple[list[Tensor], Structure]:
        """The tensors that the model returns, and how they belong together, without the loss."""
        return forward(self.model, _no_loss, batch, {**self._fixed(variables), **variables},
                       lambda run: (run.outputs, run.structure))

    def at_outputs(self, batch: Batch, outputs: Sequence[Tensor], structure: Structure) -> AtOutputs:
        """The loss as a function of such outputs."""
        return AtOutputs(outputs, structure, batch.layout.build(batch.tensors)[2], self.loss)

    @contextmanager
    def careful(self, cudnn: bool = True) -> Iterator[None]:
        """What surrounds all passes."""
        with unchanged(self.model, self.loss), ordinary_mode(), twice_differentiable(cudnn):
            for module in self.model.modules():
                if module.training and isinstance(module, nn.modules.batchnorm._NormBase):
                    module.track_running_stats = False  # it normalises by the batch all the same
            yield

    @contextmanager
    def drawn(self, number: int, batch: Batch) -> Iterator[None]:
        """Around each pass of batch `number`: its own draws from the beginning, the same each time."""
        with self.named(number, batch), drawing(Draws.seeded(self.seed_of(number), batch.tensors[0].device)):
            yield

    @contextmanager
    def named(self, number: int, batch: Batch) -> Iterator[None]:
        """Where model or loss stop at this batch, a BatchDoesNotFitError says at which, why and where."""
        try:
            yield
        except (IndexError, RuntimeError) as error:
            complaint = None if isinstance(error, HbpError) else complaint_of(self.model, self.loss, batch)
            if complaint is None:
                raise
            raise BatchDoesNotFitError(f"batch {number}: {complaint}") from error

    def draws(self, number: int, batch: Batch) -> bool:
        """Whether the model draws from torch's generators."""
        device = batch.tensors[0].device
        with torch.no_grad(), self.careful(), self.drawn(number, batch):
            before = Draws.now(device)
            self.outputs(batch, {})
            return Draws.now(device).torch_drew(before)

    def seed_of(self, number: int, what: str = "model") -> int:
        """Each batch has its own, for what the model draws and for what else is drawn."""
        return Random(f"{self.seed}, {what}, batch {number}").getrandbits(62)

    def _fixed(self, variables: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The state besides: the other parameters, and copies of buffers, which forward may overwrite."""
        others = {name: value.detach() for name, value in self.model.named_parameters() if name not in variables}
        return others | copied_buffers(self.model)


def _no_loss(output: Any, target: Any) -> Tensor:
    return torch.zeros((), device="cpu")

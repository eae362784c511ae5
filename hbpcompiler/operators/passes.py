"""A forward pass of the model on one batch, beside the user's own: nothing of theirs changes, draws are fixed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from random import Random
from types import MappingProxyType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from hbpcompiler.compiler.prove.double import AtOutputs, twice_differentiable
from hbpcompiler.compiler.prove.draws import Draws, drawing
from hbpcompiler.compiler.prove.own_step import Loss, Pass, copied_buffers, forward, unchanged
from hbpcompiler.compiler.trace.batch import Batch
from hbpcompiler.compiler.trace.checks import complaint_of
from hbpcompiler.compiler.trace.containers import Structure
from hbpcompiler.compiler.trace.with_state import derivatives_in, holding, in_one_piece, leaves_of, ordinary_mode
from hbpcompiler.errors import BatchDoesNotFitError, HbpError
from hbpcompiler.system.threads import TRACING

Found = TypeVar("Found")
FEW = 2
"""Rows of a batch on which it is seen how a model reaches its parameters."""


@dataclass(frozen=True)
class Passes:
    """Runs of one model and loss; its parameters are read at each run."""

    model: nn.Module
    loss: Loss
    chosen: tuple[str, ...]
    seed: int

    @contextmanager
    def variables(self) -> Iterator[dict[str, Tensor]]:
        """The chosen parameters themselves, in which derivatives are taken meanwhile, with copies of their values."""
        with self.held() as chosen, derivatives_in(list(chosen.values()), list(self.model.parameters())):
            yield chosen

    @contextmanager
    def held(self) -> Iterator[dict[str, Tensor]]:
        """The same without derivatives: what forward writes into them is gone afterwards."""
        named: dict[str, Tensor] = dict(self.model.named_parameters())
        chosen = {name: named[name] for name in self.chosen}
        own = list(chosen.values())
        with holding(own, [parameter.detach().clone() for parameter in own]):
            in_one_piece(self.model, own)
            yield chosen

    def copies(self) -> dict[str, Tensor]:
        """Their values as leaves of their own, to be put in their place."""
        parameters = dict(self.model.named_parameters())
        return {name: parameters[name].detach().clone().requires_grad_() for name in self.chosen}

    def run(self, batch: Batch, finish: Callable[[Pass], Found]) -> Found:
        """`finish` of a pass with the parameters as they are; buffers are copies, which forward may overwrite."""
        return forward(self.model, self.loss, batch, copied_buffers(self.model), finish)

    def outputs(self, batch: Batch, instead: Mapping[str, Tensor] = MappingProxyType({}),
                ) -> tuple[list[Tensor], Structure]:
        """The tensors that the model returns, and how they belong together, without the loss; `instead` is in the place
        of parameters."""
        return forward(self.model, _no_loss, batch, copied_buffers(self.model),
                       lambda run: (run.outputs, run.structure), instead)

    def sees_copies(self, number: int, batch: Batch) -> bool:
        """Whether the model computes with tensors in the place of its parameters what it computes with these: not if it
        reaches some other than as attributes of its modules, by a list or a closure, say.

        Told by the leaves of autograd's graph, and not by numbers, which may be zero at this batch.
        """
        few = Batch(batch.rows(FEW), batch.layout)
        with self.careful(), self.variables() as own:
            copies = self.copies()
            with self.drawn(number, batch):
                by_own = leaves_of(self.outputs(few)[0])
            with self.drawn(number, batch):
                by_copies = leaves_of(self.outputs(few, copies)[0])
        return _places(by_own, own) == _places(by_copies, copies)

    def at_outputs(self, batch: Batch, outputs: Sequence[Tensor], structure: Structure) -> AtOutputs:
        """The loss as a function of such outputs."""
        return AtOutputs(outputs, structure, batch.layout.build(batch.tensors)[2], self.loss)

    @contextmanager
    def careful(self, cudnn: bool = True) -> Iterator[None]:
        """What surrounds all passes; no derivatives go to parameters, but within `variables`."""
        with (TRACING, unchanged(self.model, self.loss), ordinary_mode(), twice_differentiable(cudnn),
              derivatives_in((), list(self.model.parameters()))):
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
        with torch.no_grad(), self.careful(), self.held(), self.drawn(number, batch):
            before = Draws.now(device)
            self.outputs(batch)
            return Draws.now(device).torch_drew(before)

    def seed_of(self, number: int, what: str = "model") -> int:
        """Each batch has its own, for what the model draws and for what else is drawn."""
        return Random(f"{self.seed}, {what}, batch {number}").getrandbits(62)


def _no_loss(output: Any, target: Any) -> Tensor:
    return torch.zeros((), device="cpu")


def _places(leaves: Sequence[Tensor], variables: Mapping[str, Tensor]) -> list[str]:
    """The names of the variables among them, and a word for each other one."""
    names = {id(tensor): name for name, tensor in variables.items()}
    return sorted(names.get(id(leaf), "(another)") for leaf in leaves)

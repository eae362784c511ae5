"""One torch.export for each model of a test, and of models that several tests compile.

It takes most of the time of a small network. A test that compiles one model several times, with other quantities or
options, gets the first export again: for the same loss, layout of a batch, mode and choice of trainable parameters.
What follows from it is the tests' subject and runs each time.
"""

from collections.abc import Callable
from typing import Any

from torch import nn

from hbpcompiler.compiler.trace.export import TRACED_BATCH
from hbpcompiler.guards.ambient import ambient, device_types
from hbpcompiler.guards.walk import Walk

Export = Callable[..., Any]


KEPT: dict[int, nn.Module] = {}
"""The models that no test changes, by id."""


def keep(model: nn.Module) -> nn.Module:
    """The model, whose export serves later tests too."""
    KEPT[id(model)] = model
    return model


class SharedExports:
    """In place of `export`; the answers are those of the first export."""

    def __init__(self, export: Export) -> None:
        self.export = export
        self.known: dict[Any, tuple[Any, Any]] = {}
        """What became of them; and models and losses, so that no other takes their ids."""

    def __call__(self, model: nn.Module, loss: Any, batch: Any, modules: Any = None, answers: Any = None,
                 samples: int = TRACED_BATCH) -> Any:
        surroundings = ambient(device_types(model))
        key = (id(model), _state(model), surroundings, _identity(loss), _layout(batch),
               tuple((modules or {}).items()), samples)
        if key not in self.known:
            self.known[key] = self.export(model, loss, batch, modules, answers, samples), (model, loss)
        return self.known[key][0]

    def forget(self) -> None:
        """All but the exports of models that are kept."""
        self.known = {key: found for key, found in self.known.items() if key[0] in KEPT}


def _state(thing: Any) -> Any:
    """Python's state that the trace reads, with the numbers of single numbers, which it may read too."""
    walk = Walk(nn.Identity(), thing)
    return walk.key, tuple(tensor.item() for tensor in walk.tensors if not tensor.dim() and not tensor.requires_grad)


def _identity(loss: Any) -> Any:
    """Equal for torch's own losses with equal settings and no tensors."""
    own = isinstance(loss, nn.Module) and type(loss).__module__ == "torch.nn.modules.loss"
    if not own or [*loss.buffers(), *loss.parameters()]:
        return id(loss), _state(loss)
    settings = {name: value for name, value in vars(loss).items() if isinstance(value, bool | int | float | str)}
    return type(loss), tuple(sorted(settings.items()))


def _layout(batch: Any) -> Any:
    tensors = tuple((tuple(tensor.shape[1:]), tensor.dtype, tensor.device) for tensor in batch.tensors)
    return batch.layout.identity, tensors, batch.orders

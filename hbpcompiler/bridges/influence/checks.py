"""What is checked before anything runs, and what a folder of scores says it is of."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.utils.data import RandomSampler

from hbpcompiler.accumulate.batches import is_loader
from hbpcompiler.accumulate.checkpoint import fingerprint, loss_text, modes_of
from hbpcompiler.accumulate.settings import in_words, settings_of
from hbpcompiler.accumulate.total import Total
from hbpcompiler.bridges.influence.queries import Inverse
from hbpcompiler.bridges.influence.shards import ORDERS
from hbpcompiler.compiled import Compiled
from hbpcompiler.curvature import Curvature
from hbpcompiler.errors import InputError, InputTypeError, TotalWarning, listing
from hbpcompiler.operators import Operator
from hbpcompiler.result import Result
from hbpcompiler.system.callers import level_of_caller
from hbpcompiler.system.digest import digest_of
from hbpcompiler.values import Values
from hbpcompiler.version import __version__

OF_OPERATORS = (": an operator is the whole matrix, with no blocks to invert; take hbp.curvature of factors, "
                "hbp.curvature(hbp.accumulate(compiled, data).kfac), or solve with A.damped(damping) yourself, as in "
                "docs/influence.md")
"""What to do where one is given for a curvature."""


def _way_from(given: Any) -> str:
    """How to come from it to a curvature, if it holds one."""
    if isinstance(given, Values):
        return f": hbp.curvature(total.{given.quantity})"
    if isinstance(given, Total | Result):
        return ", which holds quantities: of one of them, hbp.curvature(total.kfac)"
    return OF_OPERATORS if isinstance(given, Operator) else ""


def check(curvature: Any, programs: Mapping[str, Any], loaders: Mapping[str, Any], rank: Any, at_once: Any, order: Any,
          checkpoint: Any, every: Any) -> None:
    """InputError that lists all that does not fit."""
    findings = [] if isinstance(curvature, Curvature) else [
        f"the curvature is what hbp.curvature returned, not {type(curvature).__name__}{_way_from(curvature)}"]
    findings += [f"{name} is what hbp.compile returned, not {type(given).__name__}" for name, given in programs.items()
                 if not isinstance(given, Compiled)]
    findings += [f"{name} is a {type(loader).__name__}, no iterable of batches (X, y)"
                 for name, loader in loaders.items() if not is_loader(loader)]
    if checkpoint is not None and not isinstance(checkpoint, str | os.PathLike):
        findings.append(f"checkpoint is the path of a folder, not {checkpoint!r}")
    if findings:
        raise InputTypeError(listing("these arguments are wrong:", findings))
    model = programs["train"].model
    if any(given.model is not model for given in programs.values()):
        findings.append("query and train were compiled from different models")
    own = dict(model.named_parameters())
    for name, shape in curvature.shapes.items():
        if name not in own:
            findings.append(f"{name!r} is in the curvature, and no parameter of the model")
        elif tuple(own[name].shape) != shape:
            findings.append(f"{name!r} is {list(shape)} in the curvature, and {list(own[name].shape)} in the model")
        elif not own[name].requires_grad:
            findings.append(f"{name!r} is in the curvature, and frozen: no program has a gradient of it")
    for title, number in (("rank", rank), ("at_once", at_once)):
        if number is not None and (isinstance(number, bool) or not isinstance(number, int) or number < 1):
            findings.append(f"{title} must be a positive integer, not {number!r}")
    findings += [f"the loader of {name} shuffles, and scores are in its order: use shuffle=False"
                 for name, loader in loaders.items() if isinstance(getattr(loader, "sampler", None), RandomSampler)]
    if order not in ORDERS:
        findings.append(f"order must be one of {', '.join(map(repr, ORDERS))}, not {order!r}")
    if isinstance(every, bool) or not isinstance(every, int | float) or every < 0:
        findings.append(f"checkpoint_every must be a number of seconds, not {every!r}")
    if findings:
        raise InputError(listing("these arguments are wrong:", findings))
    warn_of_other_weights(curvature, model)


def warn_of_other_weights(curvature: Curvature, model: nn.Module) -> None:
    """A curvature that was averaged on the way may be wanted; one that training has left behind hardly is."""
    if curvature.weights not in ("", fingerprint(model)[1]):
        warnings.warn("the curvature was made at other numbers of the parameters or buffers than the model has now, as "
                      "before more training, and the scores' gradients are those of now: make it anew, or load the "
                      "model's numbers of then. If it is meant so, filter this warning out",
                      TotalWarning, stacklevel=level_of_caller())


def header_of(inverse: Inverse, programs: Mapping[str, Compiled], group: Any, count: Any, **more: Any,
              ) -> dict[str, str]:
    """What scores follow from."""
    model = programs["train"].model
    settings = {f"what computes in {name}": text for name, text in settings_of(model, programs["train"].loss).items()}
    settings |= {f"what computes in {name} of {title}": text for title, given in programs.items() if title != "train"
                 for name, text in settings_of(nn.Module(), given.loss).items()}
    shapes, digest = fingerprint(model)
    tensors = tuple(tensor for block in inverse.curvature.blocks for tensor in block.tensors.values())
    world = (0, 1) if group is None else (torch.distributed.get_rank(group), torch.distributed.get_world_size(group))
    return {
        "parameters": f"{len(shapes)} tensors", "their numbers": digest,
        "curvature": f"{len(inverse.curvature.blocks)} blocks, {digest_of(tensors)}",
        "damping": repr(dict(inverse.damping)), "split": inverse.split,
        **{f"loss of {name}": loss_text(given.loss) for name, given in programs.items()},
        **settings, "modes": modes_of(model), "count": in_words(count),
        **{name: str(own) for name, own in more.items()},
        "ranks": f"{world[0]} of {world[1]}", "library": __version__, "torch": str(torch.__version__),
    }

"""Vectors over all parameters, as people have them: a dict by name, a list in order, one flat tensor; or F of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hbpcompiler.curvature.place import Shape, rows
from hbpcompiler.errors import InputError, InputTypeError, listing

MOST_NAMES = 10
"""Names of parameters that a message shows."""
FORMS = ("a vector is a dict {name: [*theta]} or a list of tensors in the order of the parameters, each with F in front"
         " for F vectors; or one flat tensor [P], and [P, F] for F vectors")


@dataclass(frozen=True)
class Vectors:
    """Vectors by parameter, {name: [F, *theta]}, and the way back to what was given."""

    parts: dict[str, Tensor]
    back: Callable[[dict[str, Tensor]], Any]


def read(given: Any, shapes: Mapping[str, Shape], device: torch.device) -> Vectors:
    """What was given, checked. Raises InputError, or InputTypeError, that lists all that does not fit."""
    if isinstance(given, Tensor):
        return _flat(given, shapes, device)
    if isinstance(given, Mapping):
        names = list(given)
        parts = dict(given)
        findings = [f"no vector for {shown(sorted(missing))}"] if (missing := set(shapes) - set(names)) else []
        if unknown := [name for name in names if name not in shapes]:
            findings.append(f"{shown(unknown)}: not in this curvature, which has {shown(list(shapes))}")
        if findings:
            advice = "Leave those out that it has not." if unknown else "Give zeros for what is missing."
            raise InputError(listing("the vector does not fit:", findings, advice))
    elif isinstance(given, Sequence) and not isinstance(given, str | bytes):
        if len(given) != len(shapes):
            raise InputError(f"a list of {len(given)} tensors does not fit: there are {len(shapes)} parameters, "
                             f"{shown(list(shapes))}")
        parts = dict(zip(shapes, given, strict=True))
    else:
        raise InputTypeError(f"{type(given).__name__} is no vector: {FORMS}")
    several = _several(parts, shapes, device)
    parts = {name: parts[name].detach() if several else parts[name].detach().unsqueeze(0) for name in shapes}

    def back(found: dict[str, Tensor]) -> Any:
        found = found if several else {name: part.squeeze(0) for name, part in found.items()}
        if isinstance(given, Mapping):
            return {name: found[name] for name in given}
        kind = tuple if isinstance(given, tuple) else list
        return kind(found[name] for name in shapes)

    return Vectors(parts, back)


def _several(parts: Mapping[str, Any], shapes: Mapping[str, Shape], device: torch.device) -> bool:
    """Whether these are F vectors each, and not one."""
    wrong_types = [found for name, part in parts.items() if (found := _wrong_type(repr(name), part, device))]
    if wrong_types:
        raise InputTypeError(listing("the vector does not fit:", wrong_types))
    leads = {name: tuple(parts[name].shape[: parts[name].dim() - len(shape)]) for name, shape in shapes.items()}
    wrong = [f"{name!r} has shape {list(parts[name].shape)}, and the parameter {list(shape)}"
             for name, shape in shapes.items()
             if parts[name].dim() < len(shape) or len(leads[name]) > 1
             or tuple(parts[name].shape[parts[name].dim() - len(shape) :]) != shape]
    if not wrong and len(set(leads.values())) > 1:
        wrong = [f"{name!r} has {f'F = {lead[0]}' if lead else 'no F'} in front" for name, lead in leads.items()]
    if wrong:
        raise InputError(listing("the vector does not fit:", wrong, f"In general {FORMS}."))
    return bool(next(iter(leads.values())))


def _flat(given: Tensor, shapes: Mapping[str, Shape], device: torch.device) -> Vectors:
    counts = [math.prod(shape) for shape in shapes.values()]
    if finding := _wrong_type("the vector", given, device):
        raise InputTypeError(finding)
    if given.dim() not in (1, 2) or given.shape[0] != sum(counts):
        raise InputError(f"a flat vector of shape {list(given.shape)} does not fit: it has to be [{sum(counts)}], or "
                         f"[{sum(counts)}, F] for F vectors as columns")
    flat = given.detach().unsqueeze(0) if given.dim() == 1 else given.detach().t()
    parts = {name: part.reshape(len(part), *shape) for (name, shape), part in
             zip(shapes.items(), flat.split(counts, 1), strict=True)}

    def back(found: dict[str, Tensor]) -> Tensor:
        flat = rows({name: found[name] for name in shapes})
        return flat.squeeze(0) if given.dim() == 1 else flat.t()

    return Vectors(parts, back)


def _wrong_type(label: str, part: Any, device: torch.device) -> str:
    if not isinstance(part, Tensor):
        return f"{label} is no tensor but {type(part).__name__}"
    if not part.dtype.is_floating_point:
        return f"{label} is of {part.dtype}, and must be of a floating-point dtype"
    if part.device != device:
        return f"{label} is on {part.device}, and the curvature on {device}; move one with .to(...)"
    return ""


def shown(names: Sequence[Any]) -> str:
    """The first few, quoted."""
    return ", ".join(map(repr, names[:MOST_NAMES])) + (", ..." if len(names) > MOST_NAMES else "")

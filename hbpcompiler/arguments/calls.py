"""One call's arguments: checked, cut to fewer samples, and what of them counts for memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from hbpcompiler.errors import InputError, listing
from hbpcompiler.quantities import BASES, COLUMN_WEIGHTS, DIRECTIONS, QUANTITIES

from .argument import Call, Sizes
from .table import ARGUMENTS, SAMPLE_WEIGHTS, arguments_for


def check_arguments(given: Mapping[str, Any], call: Call) -> dict[str, Any]:
    """What the program is given; raises InputError for what is unknown, missing or does not fit."""
    wanted = {argument.given_as or argument.name: argument
              for argument in arguments_for(call.quantities, call.clipping)}
    names = list(wanted)
    findings = []
    for name in given:
        if name not in names:
            needed = [quantity for quantity in QUANTITIES.values() if name in quantity.arguments]
            asked = "which was not asked for" if len(needed) == 1 else "none of which was asked for"
            why = f"it is for {', '.join(own.name for own in needed)}, {asked}" if needed else (
                "there is none of this name; a call takes "
                f"{', '.join(['generator', *names, 'into', 'decay', 'weight'])}")
            findings.append(f"{name}: {why}")
    missing = [name for name, argument in wanted.items() if argument.default is None and name not in given]
    for name in missing:
        users = [own for own in call.quantities if name in QUANTITIES[own].arguments]
        findings.append(f"{name} is missing: {', '.join(users)} needs it, compiled(X, y, {name}=...)")
    if findings:
        raise InputError(listing("these arguments of the call are wrong:", findings))
    return {argument.name: argument.check(given[name], call) for name, argument in wanted.items() if name in given}


def check_fit(arguments: Mapping[str, Any], sizes: Mapping[str, Sizes]) -> None:
    """InputError for what does not fit a program, which asks these sizes of arguments."""
    for name, asked in sizes.items():
        if name not in arguments:
            continue
        if findings := ARGUMENTS[name].fits(arguments[name], asked):
            raise InputError(listing(f"{name} does not fit:", findings))


def of_reached(arguments: Mapping[str, Any], unreached: Sequence[str]) -> Mapping[str, Any]:
    """Without the bases of parameters that do not reach the loss with this batch: results leave these out."""
    if not unreached or BASES not in arguments:
        return arguments
    held = {name: basis for name, basis in arguments[BASES].items() if name.rpartition(".")[0] not in unreached}
    return {**arguments, BASES: held}


def without_weights(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """All but the weights of samples: those of a call about the loss as it is."""
    return {name: value for name, value in arguments.items() if name != SAMPLE_WEIGHTS}


class Brought(NamedTuple):
    """What of a call's arguments counts for its memory."""

    weights: bool = False
    """Whether its samples have weights."""
    vectors: int | None = None
    """How many directions, or weights of each column, it brings; None: it is not known."""


def brought_by(arguments: Mapping[str, Any]) -> Brought:
    """That of a call with these arguments."""
    if not arguments:
        return Brought()
    counts = [tensor.shape[axis] for name, axis in ((DIRECTIONS, 0), (COLUMN_WEIGHTS, -1))
              for tensor in arguments.get(name, {}).values()]
    return Brought(arguments.get(SAMPLE_WEIGHTS) is not None, max(counts, default=None))


def rows_of(arguments: Mapping[str, Any], count: int) -> dict[str, Any]:
    """The arguments for the first `count` samples; zeros where there are none."""
    found = dict(arguments)
    for name, value in arguments.items():
        if ARGUMENTS[name].of_samples and isinstance(value, Tensor):
            found[name] = _rows(value, count)
        elif ARGUMENTS[name].of_samples and isinstance(value, dict):
            found[name] = {key: _rows(tensor, count) for key, tensor in value.items()}
    return found


def _rows(value: Tensor, count: int) -> Tensor:
    return value[:count] if len(value) else value.new_zeros(count, *value.shape[1:])

"""Arguments of an exported graph's operations by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.fx import Node


def names_of(called: Any) -> list[str]:
    """The names of an overload's arguments."""
    return [argument.name for argument in called._schema.arguments]


def given_to(node: Node) -> dict[str, Any]:
    """What a node gives its operation; defaults are not in it."""
    return {**dict(zip(names_of(node.target), node.args, strict=False)), **node.kwargs}


def in_order(called: Any, given: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """Arguments by place, with defaults where none is given, and those that must be named."""
    schema = called._schema.arguments
    by_place = [argument for argument in schema if not argument.kwarg_only]
    last = max(number for number, argument in enumerate(by_place) if argument.name in given)
    values = [given.get(argument.name, argument.default_value) for argument in by_place[: last + 1]]
    named = {argument.name: given[argument.name] for argument in schema
             if argument.kwarg_only and argument.name in given}
    return values, named


def chosen_by(given: Mapping[str, Any]) -> Any:
    """What picks, of an operation that picks or puts."""
    return given.get("indices", given.get("mask", given.get("index")))


def draws(called: Any, given: Mapping[str, Any]) -> bool:
    """Whether an operation draws random numbers, which dropout may be told not to."""
    never = given.get("train") is False or ("dropout_p" in names_of(called) and not given.get("dropout_p"))
    return torch.Tag.nondeterministic_seeded in called.tags and not never


def axes_of(given: Any, rank: int) -> tuple[int, ...]:
    """Axes, counted from the front; all of them where none is named."""
    if given is None or given == []:
        return tuple(range(rank))
    return tuple(axis % max(rank, 1) for axis in (given if isinstance(given, list | tuple) else [given]))

"""Which parameters have their curvature taken together: all of them, those of a layer, single ones, or lists.

Parameters of one group meet in one matrix; different groups are blocks of it, as in a block-diagonal approximation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from hbpcompiler.errors import OptionError, OptionTypeError, listing
from hbpcompiler.patterns import fitting
from hbpcompiler.tied_names import tied_elsewhere

ALL, LAYER, PARAMETER = "all", "layer", "parameter"
WAYS = (ALL, LAYER, PARAMETER)
ADVICE = ("groups is 'all', 'layer', 'parameter', a list of lists of parameter names such as "
          "[['0.weight', '0.bias'], ['2.*']], or a dict of such lists by the names that the groups shall have")

Groups = Mapping[str, tuple[str, ...]]
"""The names of each group's parameters, by the group's name."""


def groups_of(model: nn.Module, given: Any) -> Groups:
    """The groups that `given` describes, in the model's order of parameters within each.

    Only parameters with requires_grad=True belong to "all", "layer" and "parameter". A layer's name is its module's, ""
    for the model itself. Lists may have shell patterns; theirs are named "group0", "group1", ... Raises OptionError for
    names that no parameter has, frozen parameters, parameters in two groups and empty groups, OptionTypeError for
    anything else.
    """
    trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    if given == ALL:
        return {ALL: tuple(trainable)}
    if given == PARAMETER:
        return {name: (name,) for name in trainable}
    if given == LAYER:
        layers: dict[str, list[str]] = {}
        for name in trainable:
            layers.setdefault(name.rpartition(".")[0], []).append(name)
        return {layer: tuple(names) for layer, names in layers.items()}
    if isinstance(given, str):
        raise OptionError(f"groups {given!r} is unknown. {ADVICE}")
    return _listed(model, trainable, _by_name(given))


def _by_name(given: Any) -> dict[str, Sequence[str]]:
    """The lists by the groups' names, their types checked."""
    if isinstance(given, Mapping):
        lists = dict(given)
    elif isinstance(given, list | tuple):
        lists = {f"group{number}": names for number, names in enumerate(given)}
    else:
        raise OptionTypeError(f"groups cannot be {given!r}. {ADVICE}")
    if not lists:
        raise OptionError(f"groups is empty. {ADVICE}")
    for group, names in lists.items():
        texts = isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)
        if not isinstance(group, str) or not texts:
            raise OptionTypeError(f"{group!r} in groups is {names!r}, no list of parameter names. {ADVICE}")
    return lists


def _listed(model: nn.Module, trainable: Sequence[str], lists: Mapping[str, Sequence[str]]) -> Groups:
    """The parameters that the lists name; all that is wrong with them in one error."""
    findings = []
    homes: dict[str, str] = {}
    for group, patterns in lists.items():
        if not patterns:
            findings.append(f"{group} has no parameters")
        for pattern in patterns:
            names = fitting(trainable, pattern)
            if not names:
                findings.append(f"{group}: {_why_not(model, pattern)}")
            for name in names:
                home = homes.setdefault(name, group)
                if home != group:
                    findings.append(f"{name!r} is in {home} and in {group}")
        findings += [f"{group}: {finding}" for finding in tied_elsewhere(
            model, [pattern for pattern in patterns if fitting(trainable, pattern)])]
    if findings:
        raise OptionError(listing("groups cannot be made:", list(dict.fromkeys(findings)),
                                  f"Trainable parameters are {', '.join(trainable)}."))
    return {group: tuple(name for name in trainable if homes.get(name) == group) for group in lists}


def _why_not(model: nn.Module, name: str) -> str:
    """Why no trainable parameter is called so."""
    parameters = dict(model.named_parameters())
    if name in parameters:
        return f"{name!r} is not trained (requires_grad=False)"
    tied = dict(model.named_parameters(remove_duplicate=False)).get(name)
    for first, parameter in parameters.items():
        if tied is parameter:
            return f"{name!r} is the same parameter as {first!r}, under which name it is known"
    return f"no parameter is called {name!r}"

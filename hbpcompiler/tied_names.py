"""Parameters of several names go by the first: a pattern that matches only a further one would leave them out silently.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from hbpcompiler.patterns import fits

OTHER_NAME = "these patterns mean a parameter that goes by another name, which has to be among them:"


def tied_elsewhere(model: nn.Module, patterns: Sequence[str]) -> list[str]:
    """What is wrong with shell patterns of parameters' names, together a choice: those that match a further name of a
    tied, trained parameter whose first name none of them matches."""
    first = {id(parameter): name for name, parameter in model.named_parameters()}
    every = dict(model.named_parameters(remove_duplicate=False))
    further = [(name, first[id(parameter)]) for name, parameter in every.items()
               if parameter.requires_grad and first[id(parameter)] != name]
    left_out = [(name, known) for name, known in further
                if not fits(known, patterns, every)]
    findings = []
    for pattern in patterns:
        for name, known in left_out:
            if fits(name, [pattern], every):
                which = repr(pattern) if name == pattern else f"{pattern!r}: {name}"
                findings.append(f"{which} is tied, and goes by its first name: {known}")
    return findings

"""What `hbp.operator` is told: the kinds of matrices, and what is wrong with an option."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from hbpcompiler.errors import OptionError, OptionTypeError, listing
from hbpcompiler.patterns import fits, fitting
from hbpcompiler.system.threads import trainable_of
from hbpcompiler.tied_names import OTHER_NAME, tied_elsewhere

GGN, HESSIAN, EMPIRICAL, SAMPLED = "ggn", "hessian", "fisher_empirical", "fisher_sampled"
KINDS = (GGN, HESSIAN, EMPIRICAL, SAMPLED)


def check_kind(kind: Any) -> None:
    """OptionError unless it is one of the kinds."""
    if not isinstance(kind, str) or kind not in KINDS:
        given = repr(kind) if isinstance(kind, str) else f"a {type(kind).__name__}"
        hint = "" if isinstance(kind, str) else "; a batch is one argument, (X, y)"
        raise OptionError(f"kind {given} is unknown; choose one of {', '.join(KINDS)}{hint}")


def check_positive(numbers: Mapping[str, Any]) -> None:
    """OptionError for one that is no positive integer, by the option's name."""
    for name, number in numbers.items():
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise OptionError(f"{name} must be a positive integer, not {number!r}")


def check_seed(seed: Any) -> int:
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise OptionTypeError(f"seed must be an integer, not {seed!r}")
    return seed


def chosen_parameters(model: nn.Module, patterns: Any) -> dict[str, Tensor]:
    """The trainable parameters that some pattern matches."""
    listed = [patterns] if isinstance(patterns, str) else patterns
    if not isinstance(listed, list | tuple) or not all(isinstance(pattern, str) for pattern in listed):
        raise OptionTypeError("parameters must be a pattern of names or a list of some, such as ['layer1.*', "
                              f"'head.weight'], not {patterns!r}")
    trainable = trainable_of(model)
    if tied := tied_elsewhere(model, listed):
        raise OptionError(listing(OTHER_NAME, tied, f"There are {', '.join(trainable)}."))
    unmatched = [repr(pattern) for pattern in listed if not fitting(trainable, pattern)]
    if unmatched or not listed:
        raise OptionError(listing("these patterns match no trainable parameter:", unmatched or ["(none was given)"],
                                  f"There are {', '.join(trainable)}."))
    return {name: parameter for name, parameter in trainable.items()
            if fits(name, listed, trainable)}

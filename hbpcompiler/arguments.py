"""Call arguments: what a call brings beside its batch, as arguments of the generated `forward`.

They change from call to call without a new program. A program has those that its quantities need (`Quantity.arguments`)
and those that are for all quantities. An entry of `TABLE` says everything about one: how the generated signature has
it, what is checked before anything runs, and what stands for it where a program runs on tensors without memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hbpcompiler.clipping import FLAT, PER_PARAMETER
from hbpcompiler.errors import InputError, InputTypeError, listing
from hbpcompiler.quantities import (
    BASES,
    COLUMN_WEIGHTS,
    CURVATURE,
    DIRECTIONS,
    GRADIENT_EDGES,
    OUTPUT,
    PARAMETER_EDGES,
    QUANTITIES,
)

FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class Call:
    """What a call's arguments are checked against."""

    samples: int
    device: torch.device
    quantities: tuple[str, ...]
    """of the program"""
    parameters: Mapping[str, torch.Size]
    """The shapes of the model's parameters, by name."""
    clipping: str = FLAT
    """The style of clipped gradients."""
    clipped: tuple[str, ...] = ()
    """Names of the parameters whose gradients are clipped."""
    dtype: torch.dtype = torch.float32
    """of the model"""


Sizes = Mapping[str, tuple[int, ...]]
"""What a program asks of a dict of tensors: by name, all lengths but those of the batch and of a call's own choice."""


@dataclass(frozen=True)
class Argument:
    """One call argument. `check(value, call)` is what the program gets; it raises InputError."""

    name: str
    annotation: str
    """Its type in the generated file."""
    check: Callable[[Any, Call], Any]
    default: str | None = None
    """In the generated signature; None: a call has to give it."""
    always: bool = False
    """Whether every program has it; otherwise those of the quantities that name it."""
    of_samples: bool = False
    """Whether it is a tensor that begins with the sample axis."""
    given_as: str = ""
    """How a call names it, if not as the program does."""
    stand_in: Callable[[int, Mapping[str, Tensor], Sizes, int], Any] = lambda samples, state, sizes, vectors: None
    """(samples, the program's parameters and buffers, sizes, vectors) -> a value to run it on, on the meta device if
    they are there: the default where there is one, so that costs are those of a plain call; of so many vectors."""
    fits: Callable[[Any, Sizes], list[str]] = lambda value, sizes: []
    """What does not fit the program, once there is one."""


def check_weights(value: Any, call: Call) -> Tensor | None:
    """[N] floating-point numbers, finite; not negative where a root of them is taken."""
    if value is None:
        return None
    if not isinstance(value, Tensor):
        raise InputTypeError(f"sample_weights must be a tensor of shape [{call.samples}], a number for each sample, "
                             f"not {type(value).__name__}")
    if value.dtype not in FLOATING:
        raise InputTypeError(f"sample_weights must be a tensor of floating-point numbers ({_listed(FLOATING)}), not "
                             f"{value.dtype}; convert it: sample_weights.float()")
    if all(QUANTITIES[name].streams == {OUTPUT} for name in call.quantities):
        raise InputError(f"sample_weights are for what is made of the samples' losses; {', '.join(call.quantities)} "
                         "is of the model's output: leave them out")
    findings = []
    if tuple(value.shape) != (call.samples,):
        findings.append(f"it has shape {list(value.shape)}, but the batch has {call.samples} samples: one weight for "
                        f"each, shape [{call.samples}]")
    if value.device != call.device:
        findings.append(f"it is on {value.device}, and the batch on {call.device}")
    if not findings:
        findings += _wrong_numbers(value.detach(), call)
    if findings:
        raise InputError(listing("sample_weights does not fit:", findings))
    return value.detach()


def _wrong_numbers(weights: Tensor, call: Call) -> list[str]:
    finite = weights.isfinite()
    if not finite.all():
        return [f"{_at(weights, ~finite)}, but weights are finite numbers"]
    roots = [name for name in call.quantities if QUANTITIES[name].streams & CURVATURE or QUANTITIES[name].averages]
    negative = weights < 0
    if roots and negative.any():
        return [f"{_at(weights, negative)}, but weights are not negative for {', '.join(roots)}: square roots of them "
                "are taken; the quantities of the gradient alone take negative ones"]
    averages = [name for name in roots if QUANTITIES[name].averages]
    if averages and call.samples and not weights.any():
        return [f"all weights are zero, so that {', '.join(averages)} has no value: it has averages over the samples"]
    return []


def _at(weights: Tensor, wrong: Tensor) -> str:
    place = wrong.nonzero()[0].tolist()
    return f"sample_weights{place} is {weights[tuple(place)].item()}"


def _listed(items: Sequence[Any]) -> str:
    return ", ".join(map(str, items))


def check_max_norm(value: Any, call: Call) -> float:
    """A positive, finite number, or a tensor of one."""
    if isinstance(value, Mapping):
        raise InputTypeError("max_norm is one number where norms are over all parameters together; a dict of them is "
                             "for hbp.compile(..., clipping='per_parameter')")
    number = _number(value)
    if number is None:
        raise InputTypeError(f"max_norm must be a positive number, or a tensor of one, not {_shown(value)}")
    if not 0 < number < float("inf"):
        raise InputError(f"max_norm must be a positive, finite number, not {number}")
    return number


def check_max_norms(value: Any, call: Call) -> dict[str, float]:
    """One such number for all parameters, or a dict of them by the parameters' names."""
    if not isinstance(value, Mapping):
        return dict.fromkeys(call.clipped, check_max_norm(value, call))
    strangers = [f"{name!r} is no parameter of the model" for name in value if name not in call.parameters]
    missing = [f"{name!r} has none" for name in call.clipped if name not in value]
    numbers = {name: _number(given) for name, given in value.items()}
    wrong = [f"that of {name!r} is {_shown(value[name])}" for name, number in numbers.items()
             if number is None or not 0 < number < float("inf")]
    if findings := [*strangers, *missing, *wrong]:
        raise InputError(listing("max_norm must be one positive, finite number, or a dict of them by parameter name:",
                                 findings))
    return {name: number for name, number in numbers.items() if number is not None}


def _number(value: Any) -> float | None:
    """A number, or the one in a tensor; None for all else, flags among it."""
    if isinstance(value, Tensor):
        plain = value.dim() == 0 and not value.is_complex() and value.dtype is not torch.bool
        return float(value) if plain else None
    if isinstance(value, bool):
        return None
    return float(value) if isinstance(value, Real) else None


def _shown(value: Any) -> str:
    return f"a tensor of shape {list(value.shape)}" if isinstance(value, Tensor) and value.dim() else repr(value)


def check_dict(name: str, what: str) -> Callable[[Any, Call], dict[str, Tensor]]:
    """A check of a dict of tensors in the model's dtype, on the batch's device."""
    def check(value: Any, call: Call) -> dict[str, Tensor]:
        if not isinstance(value, Mapping) or not all(isinstance(tensor, Tensor) for tensor in value.values()):
            raise InputTypeError(f"{name} must be a dict of tensors, {what}, not {type(value).__name__}")
        findings = []
        for key, tensor in value.items():
            if tensor.dtype != call.dtype:
                findings.append(f"that of {key!r} is {tensor.dtype}, and the model {call.dtype}")
            if tensor.device != call.device:
                findings.append(f"that of {key!r} is on {tensor.device}, and the batch on {call.device}")
            if name == COLUMN_WEIGHTS and tensor.dim() == 3 and len(tensor) != call.samples:
                findings.append(f"that of {key!r} is for {len(tensor)} samples, and the batch has {call.samples}")
        if findings:
            raise InputError(listing(f"{name} does not fit:", findings))
        return {key: tensor.detach() for key, tensor in value.items()}

    return check


def fitting(samples_first: bool) -> Callable[[Any, Sizes], list[str]]:
    """What is wrong with the names and shapes of a dict: [N, K, F] for groups, [F, *theta] for parameters."""
    def findings(value: Mapping[str, Tensor], sizes: Sizes) -> list[str]:
        found = [f"there is nothing called {key!r}; there are {_listed([*sizes])}" for key in value if key not in sizes]
        for key, lengths in sizes.items():
            wanted = ["N", *lengths, "F"] if samples_first else ["F", *lengths]
            own = None if key not in value else tuple(value[key].shape)
            middle = None if own is None else own[1:-1] if samples_first else own[1:]
            if own is None:
                found.append(f"that of {key!r} is missing, [{_listed(wanted)}]")
            elif len(own) != len(wanted) or middle != lengths:
                found.append(f"that of {key!r} has shape {list(own)} instead of [{_listed(wanted)}]")
        counts = {tensor.shape[0] for key, tensor in value.items() if key in sizes and tensor.dim()}
        if not samples_first and len(counts) > 1:
            found.append(f"all need the same number of directions F, but there are {_listed(sorted(counts))}")
        return found

    return findings


def check_bases(value: Any, call: Call) -> dict[str, Tensor]:
    """By parameter name something with A and B; of both one dict, {"0.weight.A": ..., "0.weight.B": ...}."""
    if not isinstance(value, Mapping):
        raise InputTypeError("bases must be a dict from parameter name to what has eigenvectors A and B, as a result's "
                             f"ekfac is, not {type(value).__name__}")
    findings, found = [], {}
    for key, pair in value.items():
        sides = {side: getattr(pair, side, None) for side in ("A", "B")}
        if sides["B"] is None:
            findings.append(f"that of {key!r} is {type(pair).__name__}, which has no B")
        for side, basis in sides.items():
            if basis is None:
                continue
            if not isinstance(basis, Tensor) or basis.dtype not in FLOATING:
                findings.append(f"{side} of {key!r} is no tensor of floating-point numbers but "
                                f"{basis.dtype if isinstance(basis, Tensor) else type(basis).__name__}")
            elif basis.device != call.device:
                findings.append(f"{side} of {key!r} is on {basis.device}, and the batch on {call.device}")
            else:
                found[f"{key}.{side}"] = basis.detach()
    if findings:
        raise InputError(listing("bases does not fit:", findings))
    return found


def _fitting_bases(value: Mapping[str, Tensor], sizes: Sizes) -> list[str]:
    """What is wrong with the names and shapes of bases: of one parameter "A" and "B", or "B" alone."""
    found = []
    for name in {**sizes, **value}:
        (key, side), wanted = name.rsplit(".", 1), sizes.get(name)
        own = None if name not in value else list(value[name].shape)
        if wanted is None:
            known = f"{key}.B" in sizes
            found.append(f"there is no {side} of {key!r}, which " + ("meets no input features" if known else
                         f"has none here; there are those of {_listed(_parameters_of(sizes))}"))
        elif own is None:
            found.append(f"{side} of {key!r} is missing, {list(wanted)}")
        elif own != list(wanted):
            found.append(f"{side} of {key!r} has shape {own} instead of {list(wanted)}")
    return found


def _parameters_of(sizes: Sizes) -> list[str]:
    return list(dict.fromkeys(name.rsplit(".", 1)[0] for name in sizes))


def _bases(samples: int, state: Mapping[str, Tensor], sizes: Sizes, vectors: int) -> dict[str, Tensor]:
    """Those in which everything is what it is."""
    like = next(tensor for tensor in state.values() if tensor.is_floating_point())
    return {name: torch.eye(shape[-1], dtype=like.dtype, device=like.device).expand(shape)
            for name, shape in sizes.items()}


def _weights_of_columns(samples: int, state: Mapping[str, Tensor], sizes: Sizes, vectors: int) -> dict[str, Tensor]:
    like = next(tensor for tensor in state.values() if tensor.is_floating_point())
    return {group: like.new_zeros((samples, *columns, vectors)) for group, columns in sizes.items()}


def _directions(samples: int, state: Mapping[str, Tensor], sizes: Sizes, vectors: int) -> dict[str, Tensor]:
    return {name: state[name].new_zeros((vectors, *shape)) for name, shape in sizes.items()}


def check_edges(name: str) -> Callable[[Any, Call], Tensor | None]:
    """A check of the edges of bins, [B + 1] increasing numbers."""
    def check(value: Any, call: Call) -> Tensor | None:
        if value is None:
            return None
        if not isinstance(value, Tensor) or value.dim() != 1 or len(value) < 2 or not bool((value.diff() > 0).all()):
            raise InputError(f"{name} must be a tensor of two or more increasing numbers, the edges of bins, not "
                             f"{_shown(value)}")
        return value.detach().to(call.device, call.dtype)

    return check


SAMPLE_WEIGHTS = "sample_weights"
INTO, DECAY, SHARES = "into", "decay", "shares"
"""Of programs that add their results to given tensors (see `program.adding`): those tensors, what remains of them, and
how much of the batch's results is added, by the slots' keys. No call takes them as they are (see `into`)."""
DRAW_KEYS = "draw_keys"
"""[N] int64, one for each sample: of programs that draw by sample, for data sets in parts. No call takes it."""
MAX_NORM, MAX_NORMS = "max_norm", "max_norms"
"""One bound for all parameters together; one for each of them."""
TABLE: tuple[Argument, ...] = (
    Argument(MAX_NORM, "float", check_max_norm, stand_in=lambda samples, state, sizes, vectors: 1.0),
    Argument(MAX_NORMS, "Dict[str, float]", check_max_norms, given_as=MAX_NORM,
             stand_in=lambda samples, state, sizes, vectors: dict.fromkeys(state, 1.0)),
    Argument(DRAW_KEYS, "Tensor", lambda value, call: value, of_samples=True),
    Argument(INTO, "Dict[str, Tensor]", lambda value, call: value),
    Argument(DECAY, "float", lambda value, call: value),
    Argument(SHARES, "Dict[str, float]", lambda value, call: value),
    Argument(SAMPLE_WEIGHTS, "Optional[Tensor]", check_weights, default="None", always=True, of_samples=True),
    Argument(DIRECTIONS, "Dict[str, Tensor]", check_dict(DIRECTIONS, "[F, *theta] for each parameter"),
             stand_in=_directions, fits=fitting(False)),
    Argument(COLUMN_WEIGHTS, "Dict[str, Tensor]", check_dict(COLUMN_WEIGHTS, "[N, K, F] for each group of parameters"),
             of_samples=True, stand_in=_weights_of_columns, fits=fitting(True)),
    *(Argument(name, "Optional[Tensor]", check_edges(name), default="None")
      for name in (GRADIENT_EDGES, PARAMETER_EDGES)),
    Argument(BASES, "Dict[str, Tensor]", check_bases, stand_in=_bases, fits=_fitting_bases),
)
"""Those without a default come first in a signature, otherwise this is the order."""
ARGUMENTS: Mapping[str, Argument] = {argument.name: argument for argument in TABLE}


def arguments_for(quantities: Sequence[str], clipping: str = FLAT) -> tuple[Argument, ...]:
    """The arguments of a program for these quantities, as its signature has them."""
    named = {MAX_NORMS if name == MAX_NORM and clipping == PER_PARAMETER else name
             for quantity in quantities for name in QUANTITIES[quantity].arguments}
    wanted = [argument for argument in TABLE if argument.always or argument.name in named]
    return tuple(sorted(wanted, key=lambda argument: argument.default is not None))


def check_arguments(given: Mapping[str, Any], call: Call) -> dict[str, Any]:
    """What the program is given; raises InputError for what is unknown, missing or does not fit."""
    wanted = {argument.given_as or argument.name: argument
              for argument in arguments_for(call.quantities, call.clipping)}
    names = list(wanted)
    findings = []
    for name in given:
        if name not in names:
            needed = [quantity for quantity in QUANTITIES.values() if name in quantity.arguments]
            why = f"it is for {', '.join(own.name for own in needed)}, which were not asked for" if needed else (
                f"there is none of this name; a call takes {', '.join(['generator', *names])}")
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

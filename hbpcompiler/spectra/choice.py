"""Which eigenvectors are meant: the first few, some by their numbers, or those above a threshold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hbpcompiler.errors import InputError, InputTypeError, listing


@dataclass(frozen=True)
class Choice:
    """What a caller said; at most one of the three."""

    top: Any = None
    """A number of eigenvectors, or one for each group by name."""
    indices: Any = None
    """Their places in the order of falling eigenvalues; or those for each group by name."""
    threshold: Any = None
    """Eigenvalues larger than this one; or one for each group by name."""

    def of(self, eigenvalues: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The places [k] of the chosen ones, by group. Raises InputError for all that cannot be, at once."""
        given = {name: value for name, value in vars(self).items() if value is not None}
        if len(given) > 1:
            raise InputError(f"choose eigenvectors by one of {', '.join(given)}, not by all of them")
        for name, value in given.items():
            named = value if isinstance(value, Mapping) else ()
            strangers = [repr(group) for group in named if group not in eigenvalues]
            if strangers:
                raise InputError(f"{name} names unknown groups: {', '.join(strangers)}. There are "
                                 f"{', '.join(map(repr, eigenvalues))}")
        found, findings = {}, []
        for group, values in eigenvalues.items():
            try:
                found[group] = _places(values, {name: _for_group(value, group) for name, value in given.items()})
            except InputError as error:
                findings.append(str(error) if len(eigenvalues) == 1 else f"{group!r}: {error}")
                if isinstance(error, InputTypeError):
                    raise
        if len(eigenvalues) == 1 and findings:
            raise InputError(findings[0])
        if findings:
            raise InputError(listing("Eigenvectors cannot be chosen so:", findings, "Choose for each group, as in "
                                     "top={group: min(10, len(values)) for group, values in "
                                     "spectrum.eigenvalues.items()}."))
        return found


def _for_group(value: Any, group: str) -> Any:
    return value.get(group) if isinstance(value, Mapping) else value


def _places(eigenvalues: Tensor, given: Mapping[str, Any]) -> Tensor:
    """Of one group. A dict that says nothing about the group chooses none."""
    count, device = len(eigenvalues), eigenvalues.device
    if not given:
        return torch.arange(count, device=device)
    ((name, value),) = given.items()
    if value is None:
        return torch.arange(0, device=device)
    if name == "top":
        return torch.arange(_number(value, count), device=device)
    if name == "threshold":
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InputTypeError(f"threshold must be a number, not {value!r}")
        return (eigenvalues > value).nonzero().flatten()
    return _indices(value, count).to(device)


def _number(top: Any, count: int) -> int:
    if isinstance(top, bool) or not isinstance(top, int):
        raise InputTypeError(f"top must be a number of eigenvectors, not {top!r}")
    if top < 0:
        raise InputError(f"top must not be negative, as {top} is")
    if top > count:
        raise InputError(f"top={top} is more than the {count} eigenvectors that there are (the others' eigenvalues are "
                         "zero to rounding)")
    return top


def _indices(given: Any, count: int) -> Tensor:
    if isinstance(given, Tensor) and given.dim() == 1 and given.dtype in (torch.int64, torch.int32):
        listed = given.tolist()
    elif isinstance(given, Sequence) and all(isinstance(item, int) and not isinstance(item, bool) for item in given):
        listed = list(given)
    else:
        raise InputTypeError(f"indices must be a list, or a tensor with one axis, of whole numbers, not {given!r}")
    wrong = [str(index) for index in listed if not 0 <= index < count]
    if wrong:
        raise InputError(f"there are {count} eigenvectors, so indices lie from 0 to {count - 1}; {', '.join(wrong)} "
                         "do not" if count else "indices were given, but there is no eigenvector")
    if len(set(listed)) < len(listed):
        raise InputError(f"indices are repeated: {', '.join(map(str, listed))}")
    return torch.tensor(listed, dtype=torch.int64, device="cpu")

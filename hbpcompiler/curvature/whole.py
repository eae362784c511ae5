"""The curvature of a model: a block-diagonal matrix over all its parameters."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hbpcompiler.curvature import files, scipy_operator, vectors
from hbpcompiler.curvature.block import EXACT, SPLITS, Block
from hbpcompiler.curvature.place import Shape
from hbpcompiler.errors import InputError, InputTypeError, listing
from hbpcompiler.patterns import fitting

Damping = float | Mapping[str, float]


class Curvature:
    """A symmetric block-diagonal matrix over the parameters of a model, [P, P]; made by `hbp.curvature`.

    `H["0.weight"]` is a block. Vectors `v` are dicts {name: [*theta]}, lists of tensors in the order of `H.names`, or
    one flat tensor [P], the parameters one after the other; F vectors at once have F in front in dicts and lists,
    {name: [F, *theta]}, and are the columns of a flat [P, F]. What is returned has form and dtype of what was given.

    `damping` is a number, at least 0, or a dict of one for each parameter, by names or shell patterns, of which the
    last that fits counts: {"*": 1e-3, "head.*": 1e-2}. It is added to the diagonal, with split="pi" by way of both
    factors of a Kronecker product (see `Kronecker`).

    Eigenvectors are computed in float64 when something first asks for them, and kept; whatever needs them is computed
    in float64, products in the dtype of the blocks. Tensors are not copied: change none of them in place.

    InputError: for vectors and dampings that do not fit; for a sum of block and damping that is not positive definite
    where it has to be, with the names of the blocks and the damping that it would take.
    """

    __array_ufunc__ = None  # numbers of NumPy leave the multiplication to this class

    def __init__(self, blocks: Sequence[Block], names: Sequence[str],
                 dtypes: Mapping[str, torch.dtype | None] | None = None, weights: str = "") -> None:
        places = {name: block for block in blocks for name in block.names}
        shapes = {name: shape for block in blocks for name, shape in zip(block.names, block.place.shapes, strict=True)}
        self.blocks: tuple[Block, ...] = tuple(blocks)
        self._of = {name: places[name] for name in names}
        self.shapes: dict[str, Shape] = {name: shapes[name] for name in names}
        self.dtypes: dict[str, torch.dtype | None] = {name: (dtypes or {}).get(name) for name in names}
        """Of the parameters, which `sample` draws in; None where they are not known."""
        self.weights = weights
        """A hash of the numbers that the model had where this was made, "" where that is not known."""

    # -- a mapping -----------------------------------------------------------------------------------------------------

    @property
    def names(self) -> tuple[str, ...]:
        """The parameters, in the order of lists and flat vectors: the model's."""
        return tuple(self.shapes)

    def __getitem__(self, name: str) -> Block:
        if name not in self._of:
            raise KeyError(f"{name}: this curvature has {', '.join(self.names)}")
        return self._of[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def __contains__(self, name: object) -> bool:
        return name in self._of

    @property
    def shape(self) -> tuple[int, int]:
        """(P, P)"""
        count = sum(math.prod(shape) for shape in self.shapes.values())
        return count, count

    @property
    def dtype(self) -> torch.dtype:
        """Of the blocks; the widest, if they differ."""
        dtype = self.blocks[0].dtype
        for block in self.blocks:
            dtype = torch.promote_types(dtype, block.dtype)
        return dtype

    @property
    def device(self) -> torch.device:
        return self.blocks[0].device

    def __repr__(self) -> str:
        kinds = {type(block).__name__ for block in self.blocks}
        return (f"Curvature({self.shape[0]} x {self.shape[1]}, {len(self.blocks)} blocks: {', '.join(sorted(kinds))}; "
                f"{self.dtype}, {self.device})")

    # -- products and functions ----------------------------------------------------------------------------------------

    def __matmul__(self, v: Any) -> Any:
        """H v."""
        def times(block: Block, part: Tensor) -> Tensor:
            dtype = torch.promote_types(part.dtype, block.dtype)
            wide = block if dtype == block.dtype else block.to(None, dtype)
            return wide.product(part.to(dtype))

        return self._apply(v, times)

    def solve(self, v: Any, damping: Damping = 0.0, split: str = EXACT) -> Any:
        """(H + damping)^-1 v."""
        of = self._checked(damping, split, invertible=True)
        return self._apply(v, lambda block, part: block.function(part, 1 / block.damped(of(block), split)))

    def inverse(self, damping: Damping = 0.0, split: str = EXACT) -> Curvature:
        """(H + damping)^-1, in the dtype of H: for many products, which then take no float64."""
        return self.power(-1.0, damping, split)

    def power(self, p: float, damping: Damping = 0.0, split: str = EXACT) -> Curvature:
        """(H + damping)^p, such as p = -1/2. Kronecker products stay such with split="pi" or without damping."""
        return self._power(p, damping, split, {})

    def _power(self, p: float, damping: Damping, split: str, former: Mapping[tuple[str, ...], Block]) -> Curvature:
        """`former` blocks, by their names, which are of no worth any more: what is found may take their memory."""
        exponent = number(p)
        if exponent is None:
            raise InputTypeError(f"the power must be a number, not {p!r}")
        of = self._of_each(damping, split)
        places = [former[block.names].tensors if block.names in former else {} for block in self.blocks]
        quick = [block.quick_inverse(of(block), split, place) if exponent == -1.0 else None
                 for block, place in zip(self.blocks, places, strict=True)]
        rest = [block for block, found in zip(self.blocks, quick, strict=True) if found is None]
        self._refuse(rest, of, split, invertible=exponent < 0)
        return Curvature([block.power(exponent, of(block), split) if found is None else found
                          for block, found in zip(self.blocks, quick, strict=True)], self.names, self.dtypes,
                         self.weights)

    def sample(self, n: int = 1, damping: Damping = 0.0, split: str = EXACT,
               generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """n draws from the normal distribution N(0, (H + damping)^-1): {name: [n, *theta]}, in the parameters' dtype
        (that of H where `to` has changed it, or they are not known).

        They are (H + damping)^-1/2 times standard normal numbers, which are drawn in float64 on the generator's device:
        one on the CPU gives the same draws everywhere.
        """
        if generator is not None and not isinstance(generator, torch.Generator):
            raise InputTypeError(f"generator must be a torch.Generator, not {generator!r}")
        if isinstance(n, bool) or not isinstance(n, int) or n < 0:
            raise InputTypeError(f"the number of samples must be an integer, at least 0, not {n!r}")
        of = self._checked(damping, split, invertible=True)
        device = self.device if generator is None else generator.device
        drawn = {name: torch.randn(n, *shape, dtype=torch.float64, device=device, generator=generator).to(self.device)
                 for name, shape in self.shapes.items()}
        found = self._parts(drawn, lambda block, part: block.function(part, block.damped(of(block), split) ** -0.5))
        return {name: part.to(self.dtypes[name] or self[name].dtype) for name, part in found.items()}

    def trace(self) -> Tensor:
        """The sum of the diagonal, a float64 number."""
        return torch.stack([block.trace() for block in self.blocks]).sum()

    def logdet(self, damping: Damping = 0.0, split: str = EXACT) -> Tensor:
        """log det(H + damping), a float64 number."""
        of = self._checked(damping, split, invertible=True)
        return torch.stack([block.damped(of(block), split).log().sum() for block in self.blocks]).sum()

    def diag(self) -> dict[str, Tensor]:
        """The diagonal, {name: [*theta]}."""
        found = {name: part.squeeze(0) for block in self.blocks
                 for name, part in block.place.scatter(block.diagonal().unsqueeze(0)).items()}
        return {name: found[name] for name in self.names}

    def to_dense(self) -> Tensor:
        """The matrix itself, [P, P], over flat vectors."""
        dense = torch.zeros(self.shape, dtype=self.dtype, device=self.device)
        numbers = dict(zip(self.names, torch.arange(self.shape[0], device=self.device).split(
            [math.prod(shape) for shape in self.shapes.values()]), strict=True))
        for block in self.blocks:
            own = torch.cat([numbers[name] for name in block.names])
            dense[own.unsqueeze(1), own] = block.to_dense().to(dense.dtype)
        return dense

    def to_scipy(self) -> Any:
        """A scipy.sparse.linalg.LinearOperator over flat vectors, for eigsh, cg and the like."""
        return scipy_operator.linear_operator(self)

    def __mul__(self, factor: Any) -> Curvature:
        """A positive number times H: a mean loss's curvature times N is that of the sum."""
        scale = number(factor)
        if scale is None or scale <= 0:
            raise InputError(f"a curvature can be multiplied by positive numbers, not by {factor!r}")
        return Curvature([block.scaled(scale) for block in self.blocks], self.names, self.dtypes, self.weights)

    __rmul__ = __mul__

    def __truediv__(self, divisor: Any) -> Curvature:
        """H over a positive number."""
        scale = number(divisor)
        if scale is None or scale <= 0:
            raise InputError(f"a curvature can be divided by positive numbers, not by {divisor!r}")
        return self * (1 / scale)

    # -- elsewhere -----------------------------------------------------------------------------------------------------

    def to(self, device: torch.device | str | torch.dtype | None = None, dtype: torch.dtype | None = None) -> Curvature:
        """On another device, in another dtype, or both. Eigenvectors go along unless the dtype changes."""
        if isinstance(device, torch.dtype) and dtype is None:
            device, dtype = None, device
        if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
            raise InputTypeError(f"dtype must be a floating-point dtype, not {dtype!r}")
        if isinstance(device, torch.dtype):
            raise InputTypeError(f"one dtype, not both {device} and {dtype}")
        place = None if device is None else torch.device(device)
        dtypes = self.dtypes if dtype is None else dict.fromkeys(self.names, dtype)
        return Curvature([block.to(place, dtype) for block in self.blocks], self.names, dtypes, self.weights)

    def state_dict(self) -> dict[str, Any]:
        """Tensors, numbers and texts, for torch.save; of symmetric matrices the upper triangles alone."""
        return files.state(self.blocks, self.dtypes, self.weights)

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> Curvature:
        """What `state_dict` was called on. InputError for anything else."""
        return cls(*files.restored(state))

    # -- checks --------------------------------------------------------------------------------------------------------

    def _apply(self, v: Any, function: Callable[[Block, Tensor], Tensor]) -> Any:
        given = vectors.read(v, self.shapes, self.device)
        found = self._parts(given.parts, function)
        return given.back({name: part.to(given.parts[name].dtype) for name, part in found.items()})

    def _parts(self, parts: Mapping[str, Tensor], function: Callable[[Block, Tensor], Tensor]) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for block in self.blocks:
            found |= block.place.scatter(function(block, block.place.gather(parts)))
        return {name: found[name] for name in self.names}

    def _checked(self, damping: Damping, split: str, invertible: bool) -> Callable[[Block], float]:
        """The damping of each block, if all sums are positive definite (or semidefinite, unless `invertible`)."""
        of = self._of_each(damping, split)
        self._refuse(self.blocks, of, split, invertible)
        return of

    def _of_each(self, damping: Damping, split: str) -> Callable[[Block], float]:
        """The damping of each block."""
        if not isinstance(split, str) or split not in SPLITS:
            raise InputError(f"split must be one of {', '.join(map(repr, SPLITS))}, not {split!r}")
        return self._dampings(damping)

    @staticmethod
    def _refuse(blocks: Iterable[Block], of: Callable[[Block], float], split: str, invertible: bool) -> None:
        findings = [finding for block in blocks if (finding := block.obstacle(of(block), split, invertible))]
        if findings:
            raise InputError(listing("this cannot be done with this damping:", findings))

    def _dampings(self, damping: Damping) -> Callable[[Block], float]:
        given, findings = self._by_name(damping)
        findings = [f"none for {name!r}" for name in self.names if name not in given] + findings
        numbers: dict[str, float] = {}
        for name, value in given.items():
            own = number(value)
            if own is None or own < 0:
                findings.append(f"{value!r}" + (f" for {name!r}" if isinstance(damping, Mapping) else ""))
            else:
                numbers[name] = own
        for block in self.blocks if not findings else ():
            if len({numbers[name] for name in block.names}) > 1:
                told = " and ".join(f"{numbers[name]:g}" for name in block.names)
                findings.append(f"{block.place.title} are one block, and have one damping (or sum of damping and l2), "
                                f"not {told}")
        if findings:
            raise InputError(listing("damping must be a number, at least 0, or a dict of one for each parameter, by "
                                     "its name or a shell pattern:", list(dict.fromkeys(findings))))
        return lambda block: numbers[block.names[0]]

    def _by_name(self, damping: Damping) -> tuple[dict[str, Any], list[str]]:
        """By parameter, and the patterns that fit none."""
        if not isinstance(damping, Mapping):
            return dict.fromkeys(self.names, damping), []
        given: dict[str, Any] = {}
        findings = []
        for pattern, value in damping.items():
            found = fitting(self.names, str(pattern))
            given |= dict.fromkeys(found, value)
            if not found:
                findings.append(f"{pattern!r} is no parameter of this curvature, nor a pattern of some")
        return given, findings


def number(value: Any) -> float | None:
    """A finite number, of Python or NumPy, or in a tensor of one; None for anything else."""
    if isinstance(value, bool | str | bytes) or (isinstance(value, Tensor) and (value.numel() != 1
                                                                              or value.is_complex())):
        return None
    try:
        found = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return found if math.isfinite(found) else None

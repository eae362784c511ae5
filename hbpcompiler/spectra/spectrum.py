"""What a call of a compiled spectrum returns: eigenvalues, and all that can be had of their eigenvectors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

from hbpcompiler.errors import InputError, InputTypeError
from hbpcompiler.spectra.choice import Choice
from hbpcompiler.spectra.damping import check_damping
from hbpcompiler.spectra.decompose import Eigen
from hbpcompiler.spectra.groups import ALL
from hbpcompiler.spectra.phases import First, Phases, Vectors, scale_of
from hbpcompiler.spectra.repeat import Call, check_same_output

LEAST_COLUMNS = 10
"""Directions that one pass makes at least: the forward part of a pass costs about as much as one of them."""
Kept = TypeVar("Kept")


class Spectrum:
    """Eigenvalues of the generalised Gauss-Newton matrix (GGN) of L on a batch, and what lies along its eigenvectors.

    Eigenvalues fall; those that are zero to rounding are left out, and with them their eigenvectors. An eigenvector's
    sign is arbitrary. With groups="all" attributes are as described; otherwise each is a dict of such by the group's
    name. With c = 1/N for a mean loss and 1 for a summed one, L = c sum_n l_n.

    loss: L. output: what the model returned. grad: the gradient of L, {name: [*theta]}.
    groups: the parameters of each group, {group: names}.
    """

    def __init__(self, phases: Phases, call: Call, first: First, eigen: Mapping[str, Eigen]) -> None:
        self._phases, self._call, self._eigen = phases, call, eigen
        self._reduction = first.reduction
        self._present = set(first.result.grad)
        self.loss = first.result.loss
        self.output = first.result.output
        self.grad: Vectors = dict(first.result.grad)
        self.groups = phases.groups

    @property
    def eigenvalues(self) -> Any:
        """[k], falling: of c sum_n J_n^T Hessian(l_n) J_n in the group's parameters, J_n the output's Jacobian."""
        return self._lone({group: self._like(eigen.eigenvalues) for group, eigen in self._eigen.items()})

    @property
    def dropped(self) -> Any:
        """How many eigenvalues were left out as zero to rounding: the order of the decomposed matrix less k.

        The order is D, the number of parameters, where that is smaller than N times the numbers that the model returns
        for a sample (with sampled columns, N times mc_samples); elsewhere it is NK, the number of columns.
        """
        return self._lone({group: eigen.dropped for group, eigen in self._eigen.items()})

    @property
    def slopes(self) -> Any:
        """[N, k]: the derivative of each l_n along each eigenvector; c times their sum is the gradient of L there."""
        self._check_scale("slopes")
        return self._lone({group: self._slopes(eigen) for group, eigen in self._eigen.items()})

    @property
    def curvatures(self) -> Any:
        """[N, k]: e^T G_n e, G_n the GGN of l_n. c times their sum is the eigenvalue."""
        self._check_scale("curvatures")
        return self._lone({group: self._curvatures(eigen) for group, eigen in self._eigen.items()})

    def vectors(self, top: Any = None, *, indices: Any = None, threshold: Any = None) -> Any:
        """Eigenvectors of length one, {name: [k, *theta]}: all, or some of them.

        They come from more passes over the batch, of at most about K directions each; nothing of size N K D is stored.

        Args:
            top: the first so many; or {group: so many}, none for groups that it leaves out. Likewise the others.
            indices: some by their places in the order of eigenvalues.
            threshold: those whose eigenvalues are larger.

        Raises:
            InputError: if there are not so many, if several arguments are given, or if parameters, buffers or the batch
                have changed since the spectrum was computed.
        """
        places = self._chosen(top, indices, threshold)
        made = {group: {name: self.grad[name].new_empty(len(chosen), *self.grad[name].shape)
                        for name in self._names(group)} for group, chosen in places.items()}
        for done, part in self._parts(places):
            for group, vectors in self._vectors(part, "vectors()").items():
                for name, vector in vectors.items():
                    made[group][name][done : done + len(vector)] = vector
        return self._lone(made)

    def newton_step(self, top: Any = None, *, damping: Any, indices: Any = None, threshold: Any = None,
                    slopes: Any = None) -> Any:
        """The damped Newton step within the chosen eigenvectors, {name: [*theta]}, to be added to the parameters.

        It is -sum_k g_k / (lambda_k + delta_k) e_k, g_k the gradient of L along e_k: one pass, which makes no e_k.

        Args:
            top: as for `vectors`; so are indices and threshold.
            damping: delta, positive: a number; a tensor [k]; a function of (eigenvalues [k], slopes [N, k],
                curvatures [N, k]) that returns one; or "bootstrap", see `hbp.bootstrap`. Infinity leaves a direction
                out. Or a dict of these by group.
            slopes: [M, k], what `slopes_of` gave for other samples and the same choice: g_k is then c N times their
                mean. A dict of such with several groups.

        Raises:
            InputError: as for `vectors`, and for dampings that are not positive or of another shape.
        """
        places = self._chosen(top, indices, threshold)
        given = {group: self._given_slopes(slopes, group, chosen) for group, chosen in places.items()}
        lengths = {group: self._lengths(group, chosen, damping, given[group]) for group, chosen in places.items()}
        weights, steps = {}, {}
        for group, chosen in places.items():
            directions = self._eigen[group].directions
            if directions is not None:
                steps[group] = self._split(group, (directions[:, chosen] @ lengths[group]).unsqueeze(0))
            elif len(chosen):
                weights[group] = (self._eigen[group].weights[:, :, chosen] @ lengths[group]).unsqueeze(2)
        found = self._weighted(weights, "newton_step()") if weights else {}
        for group in places:
            if group in weights:
                steps[group] = {name: found[name] for name in self._names(group)}
        none = {name: torch.zeros_like(value).unsqueeze(0) for name, value in self.grad.items()}
        return self._lone({group: {name: steps.get(group, none)[name].squeeze(0) for name in self._names(group)}
                           for group in places})

    def slopes_of(self, *batch: Any, top: Any = None, indices: Any = None, threshold: Any = None,
                  **arguments: Any) -> Any:
        """[M, k]: the derivatives of other samples' l_n along these eigenvectors, for any batch (X, y).

        Eigenvectors are made a few at a time and used up. `arguments` are those of a call, such as generator.

        Raises:
            InputError: as for `vectors`, and for a batch that does not fit.
        """
        self._check_scale("slopes_of()")
        places = self._chosen(top, indices, threshold)
        parts: dict[str, list[Tensor]] = {group: [] for group in places}
        for _, part in self._parts(places, least=1):
            slopes = self._phases.slopes(batch, self._side_by_side(part), arguments)
            for group, chosen in part.items():
                parts[group].append(slopes[group][:, : len(chosen)] if group in slopes else
                                    self.loss.new_zeros(len(next(iter(slopes.values()))), 0))
        return self._lone({group: self._like(torch.cat(found, 1)) for group, found in parts.items()})

    # -- inside ------------------------------------------------------------------------------------------------------

    def _lone(self, by_group: Mapping[str, Kept]) -> Any:
        """As the caller gets it: of the one group "all", or by group."""
        return by_group[ALL] if set(self.groups) == {ALL} else dict(by_group)

    def _like(self, values: Tensor) -> Tensor:
        return values.to(self.loss.dtype)

    def _slopes(self, eigen: Eigen) -> Tensor:
        return self._like(eigen.slopes / self._scale(eigen))

    def _curvatures(self, eigen: Eigen) -> Tensor:
        return self._like(eigen.curvatures / self._scale(eigen))

    def _scale(self, eigen: Eigen) -> float:
        """c"""
        return scale_of(self._reduction, len(eigen.slopes))

    def _names(self, group: str) -> list[str]:
        """Of the parameters that influence the loss."""
        return [name for name in self.groups[group] if name in self._present]

    def _check_scale(self, what: str) -> None:
        if not self._reduction:
            raise InputError(f"{what}: the loss is neither a mean over the samples nor a sum, so that l_n has no "
                             "scale. Eigenvalues, vectors and Newton steps do not depend on it")

    def _chosen(self, top: Any, indices: Any, threshold: Any) -> dict[str, Tensor]:
        return Choice(top, indices, threshold).of({group: eigen.eigenvalues for group, eigen in self._eigen.items()})

    def _for_group(self, given: Any, group: str, what: str) -> Any:
        if not isinstance(given, Mapping):
            return given
        if group not in given:
            raise InputError(f"{what} says nothing about group {group!r}")
        return given[group]

    def _parts(self, places: Mapping[str, Tensor], least: int = 0) -> Iterator[tuple[int, dict[str, Tensor]]]:
        """As many of each group's eigenvectors as one pass makes, and how many there were before; `least` passes."""
        width = max([LEAST_COLUMNS, *(eigen.weights.shape[1] for eigen in self._eigen.values())])
        most = max([0, *map(len, places.values())])
        for done in range(0, max(most, least), width):
            yield done, {group: chosen[done : done + width] for group, chosen in places.items()}

    def _vectors(self, places: Mapping[str, Tensor], what: str) -> dict[str, Vectors]:
        """One pass for those of all groups that the decomposition did not give."""
        weights, made = {}, {}
        for group, chosen in places.items():
            directions = self._eigen[group].directions
            if directions is not None:
                made[group] = self._split(group, directions[:, chosen].mT)
            elif len(chosen):
                weights[group] = self._eigen[group].weights[:, :, chosen]
        found = self._weighted(weights, what) if weights else {}
        return {**made, **{group: {name: found[name] for name in self._names(group)} for group in weights}}

    def _side_by_side(self, places: Mapping[str, Tensor]) -> Vectors:
        """Eigenvectors of all groups as directions of all parameters, zero where a group has fewer than others."""
        most = max(1, *map(len, places.values()))
        made = {name: value.new_zeros(most, *value.shape) for name, value in self.grad.items()}
        for vectors in self._vectors(places, "slopes_of()").values():
            for name, vector in vectors.items():
                made[name][: len(vector)] = vector
        return made

    def _split(self, group: str, flat: Tensor) -> Vectors:
        """[k, D], the group's parameters side by side, as {name: [k, *theta]}."""
        shapes = {name: self.grad[name].shape for name in self._names(group)}
        parts = self._like(flat).split([shape.numel() for shape in shapes.values()], 1)
        return {name: part.reshape(len(flat), *shapes[name]) for name, part in zip(shapes, parts, strict=True)}

    def _weighted(self, weights: Mapping[str, Tensor], what: str) -> Vectors:
        """Sums of columns, after a check that they are those of the first phase."""
        with self._call.again(what) as arguments:
            given = {group: self._like(weight).contiguous() for group, weight in weights.items()}
            result, found = self._phases.weighted(self._call.batch, given, arguments)
        check_same_output(self.output, result.output, what)
        return found

    def _lengths(self, group: str, places: Tensor, damping: Any, slopes: Tensor | None) -> Tensor:
        """[k]: how far the damped Newton step goes along each chosen eigenvector."""
        damping = self._for_group(damping, group, "damping")
        if callable(damping) or slopes is not None:
            self._check_scale("newton_step() with slopes, or with damping as a function of them")
        eigen = self._eigen[group]
        values, scale = eigen.eigenvalues[places], self._scale(eigen)
        own = eigen.slopes[:, places] / scale if slopes is None else slopes.to(eigen.slopes)
        curvatures = eigen.curvatures[:, places] / scale
        deltas = check_damping(damping, self._like(values), self._like(own), self._like(curvatures)).double()
        gradient = own.mean(0) * scale * len(eigen.slopes)
        return -gradient / (values + deltas)

    def _given_slopes(self, slopes: Any, group: str, places: Tensor) -> Tensor | None:
        if slopes is None:
            return None
        given = self._for_group(slopes, group, "slopes")
        if not isinstance(given, Tensor) or given.dim() != 2 or given.shape[1] != len(places) or not len(given):
            shown = list(given.shape) if isinstance(given, Tensor) else type(given).__name__
            raise InputTypeError(f"slopes must be [M, {len(places)}], what slopes_of returned for the same choice of "
                                 f"eigenvectors, not {shown}")
        return given

    def __repr__(self) -> str:
        counts = {group: len(eigen.eigenvalues) for group, eigen in self._eigen.items()}
        return f"Spectrum(loss={self.loss.item():.6g}, eigenvalues={self._lone(counts)})"

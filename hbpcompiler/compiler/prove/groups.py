"""verify="full" of what is by group of parameters: inner products of columns, beside each sample's own GGN by autograd.

Columns V are square roots, of which there are many. What they do to random directions d is known without them: with
p_n = V_n^T d, sum_k p_nk^2 = d^T G_n d, p_n^T (V_n^T V_m) p_m = (G_n d)^T (G_m d), p_n^T (V_n^T g_m) = (G_n d)^T g_m
and V_n p_n = G_n d, where G_n is the share of sample n in the group's GGN and g_m that of sample m in the gradient.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hbpcompiler.compiler.prove.candidate import Candidate
from hbpcompiler.compiler.prove.comparison import Comparison, Key, Numbers, compared, left_out
from hbpcompiler.compiler.prove.double import Double, double
from hbpcompiler.compiler.prove.draws import Draws, drawing
from hbpcompiler.compiler.prove.noise import Noise
from hbpcompiler.compiler.prove.twin import Results, twin_program
from hbpcompiler.compiler.trace.batch import Batch
from hbpcompiler.errors import HbpError
from hbpcompiler.quantities import COLUMN_WEIGHTS, DIRECTIONS

GRAM, CROSS, PROJECT, PROJECT_GGN, COLUMN_SUM = "gram", "cross", "project", "project_ggn", "column_sum"
TWINS: Mapping[str, str] = {f"{name}_mc": name for name in (GRAM, CROSS, PROJECT_GGN, COLUMN_SUM)}
"""The exact twins of what is sampled."""
NAMES = (GRAM, CROSS, PROJECT, PROJECT_GGN, COLUMN_SUM, *TWINS)
SAMPLES, VECTORS = 2, 2
"""How many samples are looked at, and directions."""


def group_lines(candidate: Candidate, batch: Batch, draws: Draws, eps: float) -> list[Comparison]:
    """Lines for those of `NAMES` that were asked for, a group each; of column sums, one for each parameter."""
    lines = []
    for quantity in candidate.options.quantities:
        if quantity not in NAMES:
            continue
        if None in candidate.axes:
            lines.append(left_out(quantity, "", "the output has samples merged with positions"))
            continue
        try:
            lines += _InGroups(candidate, batch, draws, quantity).lines(eps)
        except HbpError as error:
            lines.append(left_out(quantity, "", f"its twin is refused: {str(error).splitlines()[0]}"))
        except (RuntimeError, NotImplementedError) as error:
            reason = (str(error).strip().splitlines() or [""])[0][:150]
            lines.append(left_out(quantity, "", f"autograd itself fails: {reason}"))
    return lines


class _InGroups:
    """One quantity of the candidate, or of its exact twin, in groups."""

    def __init__(self, candidate: Candidate, batch: Batch, draws: Draws, quantity: str) -> None:
        self.candidate, self.batch, self.draws, self.quantity = candidate, batch, draws, quantity
        self.exact = TWINS.get(quantity, quantity)
        self.samples = min(SAMPLES, batch.samples)
        self.axes = [axis for axis in candidate.axes if axis is not None]
        chosen, trainable = candidate.options.chosen, candidate.matched.trainable
        self.members: dict[str, list[str]] = {}
        for value in trainable:
            group = chosen.group_of(value.key)
            if group is not None and chosen.asks(quantity, value.key):
                self.members.setdefault(group, []).append(value.key)
        generator = torch.Generator().manual_seed(0)
        own = dict(candidate.model.named_parameters())
        self.directions = {
            name: torch.randn((VECTORS, *own[name].shape), generator=generator, dtype=torch.float64,
                              device="cpu").to(own[name])
            for members in self.members.values() for name in members}
        """[F, *theta]"""

    def lines(self, eps: float) -> list[Comparison]:
        found = self._found()
        how = f"{self.samples} samples, along random directions"
        if self.exact != self.quantity:
            how = f"its exact twin {self.exact}, {how}"
        return compared(found, self._expected(), eps, lambda run: self._expected(Noise(eps, run)), how)

    # -- what the programs say -------------------------------------------------------------------------------------

    def _found(self) -> dict[Key, Tensor]:
        if self.exact == PROJECT:
            return {(PROJECT, group): value for group, value in self._own(**{DIRECTIONS: self.directions}).items()}
        if self.exact == PROJECT_GGN:
            columns = self._own(**{DIRECTIONS: self.directions})
        else:
            columns = self._twin(PROJECT_GGN, **{DIRECTIONS: self.directions})
        if self.exact == COLUMN_SUM:
            sums = self._own(**{COLUMN_WEIGHTS: {group: self._apart(own) for group, own in columns.items()}})
            return {(self.quantity, name): value for name, value in sums.items()}
        values = columns if self.exact == PROJECT_GGN else self._own()
        return {(self.quantity, group): self._along(columns[group][: self.samples], value)
                for group, value in values.items()}

    def _own(self, **beside: Any) -> Mapping[str, Any]:
        """The quantity itself, or its exact twin."""
        if self.exact != self.quantity:
            return self._twin(self.exact, **beside)
        with drawing(self.draws):
            found: Mapping[str, Any] = getattr(self.candidate.run(self.batch, **beside), self.quantity)
        return found

    def _twin(self, quantity: str, **beside: Any) -> Mapping[str, Any]:
        """Another quantity of the same parameters."""
        asked = {quantity: [name for members in self.members.values() for name in members]}
        program = twin_program(self.candidate.matched, self.candidate.options, (quantity,), asked)
        with drawing(self.draws):
            results: Results = program(self.candidate.state, *self.batch.tensors, **{**self.candidate.beside, **beside})
        return results[quantity]

    def _apart(self, columns: Tensor) -> Tensor:
        """[N, K, samples * F]: of each of the first samples alone."""
        apart = columns.new_zeros(*columns.shape[:2], self.samples, VECTORS)
        for n in range(self.samples):
            apart[n, :, n] = columns[n]
        return apart.flatten(2)

    def _along(self, columns: Tensor, value: Tensor) -> Tensor:
        """What does not depend on the choice of the square root; `columns` [n, K, F] are V^T d."""
        if self.exact == PROJECT_GGN:
            return torch.einsum("nkf,nkg->nfg", columns, columns)
        if self.exact == CROSS:
            return torch.einsum("nkf,nkm->nfm", columns, value[: self.samples, :, : self.samples])
        part = value[: self.samples, :, : self.samples]
        return torch.einsum("nkf,nkmj,mjg->nfmg", columns, part, columns)

    # -- the same by autograd --------------------------------------------------------------------------------------

    def _expected(self, noise: Noise | None = None) -> Numbers:
        candidate = self.candidate
        return double(candidate.model, candidate.loss, self.batch, self.draws, self._right, noise,
                      candidate.weights(self.batch))

    def _right(self, own: Double) -> Numbers:
        right: dict[Key, Tensor] = {}
        for group, members in self.members.items():
            directions = {name: self.directions[name] for name in members}
            if self.exact == PROJECT:
                shares = _side_by_side(own.shares(self.axes, self.batch.samples), members)
                right[PROJECT, group] = shares @ _side_by_side(directions, members).T
                continue
            pulled = []
            for number in range(VECTORS):
                one = {name: direction[number] for name, direction in directions.items()}
                pulled.append(own.ggn_shares(one, self.axes, self.samples))
            if self.exact == COLUMN_SUM:
                for name in members:
                    right[self.quantity, name] = torch.stack([each[name] for each in pulled], 1).flatten(0, 1)
                continue
            products = torch.stack([_side_by_side(each, members) for each in pulled], 1)  # [n, F, numbers]
            right[self.quantity, group] = self._products(products, own, directions, members)
        return right

    def _products(self, pulled: Tensor, own: Double, directions: Mapping[str, Tensor], members: Sequence[str],
                  ) -> Tensor:
        if self.exact == PROJECT_GGN:
            return torch.einsum("nga,fa->nfg", pulled, _side_by_side(directions, members))
        if self.exact == GRAM:
            return torch.einsum("nfa,mga->nfmg", pulled, pulled)
        shares = _side_by_side(own.shares(self.axes, self.samples), members)
        return torch.einsum("nfa,ma->nfm", pulled, shares)


def _side_by_side(parts: Mapping[str, Tensor], members: Sequence[str]) -> Tensor:
    """Some parameters' tensors [n, *theta] as [n, numbers]."""
    return torch.cat([parts[name].reshape(len(parts[name]), -1) for name in members], 1)

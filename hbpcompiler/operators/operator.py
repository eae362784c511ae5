"""`hbp.operator`: products with a model's whole GGN, Hessian or Fisher matrix, over a batch or a loader."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from hbpcompiler.compiler.prove.draws import Draws, drawing
from hbpcompiler.compiler.trace.checks import check_runs, refuse_nan
from hbpcompiler.guards import TRACING
from hbpcompiler.operators import exact
from hbpcompiler.operators.at_outputs import Empirical, LossHessian, Sampled
from hbpcompiler.operators.blocks import AUTO, Blocks, blocks_of
from hbpcompiler.operators.data import Data
from hbpcompiler.operators.options import (
    EMPIRICAL,
    GGN,
    SAMPLED,
    check_kind,
    check_positive,
    check_seed,
    chosen_parameters,
)
from hbpcompiler.operators.passes import Passes
from hbpcompiler.operators.products import Curvature, Products
from hbpcompiler.operators.sample_axes import SampleAxes
from hbpcompiler.operators.shares import Shares, Weighted
from hbpcompiler.operators.symmetric import SymmetricOperator
from hbpcompiler.operators.tried import try_products
from hbpcompiler.operators.vectors import Columns, Space
from hbpcompiler.options import check_model
from hbpcompiler.wrappers import unwrapped

Found = TypeVar("Found")


def operator(
    model: nn.Module,
    loss: Callable[..., Tensor] | None,
    data: Any,
    kind: str = GGN,
    *,
    parameters: Sequence[str] | str = "*",
    mc_samples: int = 1,
    seed: int = 0,
    chunk: int = 16,
    blocks: str = AUTO,
    count: Callable[[Any], Any] | None = None,
    verify: bool = True,
) -> Operator:
    """A symmetric D x D matrix of curvature, of which only products are computed; D numbers in the chosen parameters.

    - `loss`: as for `hbp.compile`; None: CrossEntropyLoss().
    - `data`: one batch as a tuple, (X, y), (X1, X2, y) or ({"name": X, ...}, y), or a loader of such batches that gives
      the same ones each time. All batches count as one: of a mean loss, each weighs by its part of what is divided by.
    - `kind`: "ggn", J^T (Hessian of L in the model's outputs) J; "hessian", of L; "fisher_empirical",
      (1/N) sum_n (grad l_n)(grad l_n)^T; "fisher_sampled", the same with gradients under `mc_samples` targets a sample,
      drawn from the model's own likelihood, scaled to have the GGN as its mean. For a summed loss without 1/N.
    - `parameters`: shell patterns of names; all trainable ones by default.
    - `seed`: of all draws (dropout, sampled targets, start vectors). They are the same in each product.
    - `chunk`: so many vectors go through the model at once.
    - `blocks`: how several vectors are multiplied with a GGN: by torch's "passes", by two compiled "programs", or
      "auto", by what is faster: measured, and shown by the operator's `blocks`, once blocks have taken some seconds.
    - `count`: how many terms of the mean a batch holds, where that cannot be measured (see the error that asks for it).
    - `verify`: on each batch, try that the products are those of a symmetric matrix.

    Parameters, buffers and data are read at each product and never changed. Raises ModelError, OptionError or
    InputError for what makes no sense, UnsupportedOpError for what torch cannot differentiate twice and where kinds or
    loaders need samples that do not mix, ProofError if `verify` finds no symmetric matrix.
    """
    check_kind(kind)
    check_positive({"mc_samples": mc_samples, "chunk": chunk})
    model, loss = unwrapped(model), nn.CrossEntropyLoss() if loss is None else loss
    check_model(model, loss)
    chosen = chosen_parameters(model, parameters)
    passes = Passes(model, loss, tuple(chosen), check_seed(seed))
    made = Operator(passes, Space.of(chosen), data, kind, mc_samples, chunk, count, blocks)
    if verify:
        made.verify()
    return made


class Operator(SymmetricOperator):
    """A curvature matrix of shape [D, D] that is known by its products; made by `hbp.operator`.

    Trainable parameters that do not reach the loss have rows and columns of zeros.
    """

    def __init__(self, passes: Passes, space: Space, data: Any, kind: str, mc_samples: int, chunk: int,
                 count: Callable[[Any], Any] | None, blocks: str) -> None:
        super().__init__(space)
        self.kind = kind
        self._passes = passes
        with self._own_draws():
            self._data = Data(passes.model, data)
            check_runs(passes.model, passes.loss, self._data.first()).warn()
            self._refuse_nan()
            axes = SampleAxes(passes)
            self._shares = Shares(passes, self._data, axes, kind, count)
        curvatures: dict[str, Curvature] = {GGN: LossHessian(), EMPIRICAL: Empirical(axes),
                                            SAMPLED: Sampled(axes, mc_samples, passes.loss)}
        self._products = Products(passes, curvatures.get(kind), chunk)
        self.blocks: Blocks = blocks_of(self._products, passes, blocks, kind == GGN)
        """How products with several vectors are computed, and what was measured; in words as text."""

    def _refuse_nan(self) -> None:
        """Raise InputError for NaN in targets that comes through to the loss."""
        passes = self._passes
        for number, batch in enumerate(self._data):
            if not any(target.is_floating_point() and bool(target.isnan().any()) for target in batch.targets):
                continue
            with torch.no_grad(), passes.careful(), passes.held(), passes.drawn(number, batch):
                is_lost = bool(passes.run(batch, lambda run: run.loss.isnan()))
            if is_lost:
                refuse_nan(batch)

    @property
    def samples(self) -> int:
        """N, of all batches together."""
        return self._data.samples

    def trace(self) -> Tensor:
        """The exact trace, by a compiled program: not for "fisher_sampled", nor for what `hbp.compile` refuses."""
        return self._exactly(exact.trace)

    def diagonal(self) -> dict[str, Tensor]:
        """The exact diagonal {name: [*theta]}, where `trace` is to be had too."""
        return self._exactly(exact.diagonal)

    # -- beneath ---------------------------------------------------------------------------------------------------

    def verify(self) -> None:
        """Try on each batch that <u, A v> = <v, A u>. Raises ProofError if not, or if they are not finite.

        So it is not where draws differ from pass to pass, or a backward pass is not the derivative of its forward.
        Where it is the forward mode that differs (it counts an embedding's padding), the backward pass is believed:
        products do without that mode from then on.
        """
        generator = self.generator("verify")
        drawn = torch.randn(2, self._space.size, 1, generator=generator, device="cpu").to(self.device, self.dtype)
        u, v = (self._space.split(each) for each in drawn)

        def run(batches: Weighted) -> None:
            for number, batch, _ in batches:
                try_products(self._products, self.blocks, number, batch, u, v)

        with self._own_draws():
            self._shares.over(run)

    def _times(self, columns: Columns) -> Columns:
        """[F, *theta] each."""
        def run(batches: Weighted) -> Columns:
            total = [torch.zeros_like(column) for column in columns]
            for number, batch, factor in batches:
                product = self.blocks.times(number, batch, columns)
                total = [sum_.add_(part, alpha=factor) for sum_, part in zip(total, product, strict=True)]
            return total

        if not len(columns[0]):
            return [torch.zeros_like(column) for column in columns]
        with self._own_draws():
            return self._shares.over(run)

    def _exactly(self, found: Callable[[exact.Exact], Found]) -> Found:
        """Of compiled quantities."""
        with self._own_draws():
            return self._shares.over(lambda batches: found(
                exact.Exact(self._passes, self.kind, self._space, self._shares.mean, batches)))

    def generator(self, what: str) -> torch.Generator:
        """Of the operator's own draws."""
        return torch.Generator().manual_seed(self._passes.seed_of(0, what))

    @contextmanager
    def _own_draws(self) -> Iterator[None]:
        """Loaders draw, too: the generators are put back. Passes put values in the model's place, so that threads wait
        for each other."""
        with TRACING, drawing(Draws.now(self._space.device)):
            yield

    def __repr__(self) -> str:
        return (f"Operator({type(self._passes.model).__name__}, kind={self.kind!r}, shape={list(self.shape)}, "
                f"samples={self.samples})")

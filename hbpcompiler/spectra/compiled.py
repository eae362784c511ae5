"""`hbp.spectrum`: a model compiled for the spectrum of its generalised Gauss-Newton matrix."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hbpcompiler.compiled import Compiled
from hbpcompiler.compiler.trace.batch import Batch
from hbpcompiler.compiler.trace.checks import check_batch, check_runs
from hbpcompiler.errors import CompileError, InputError, InputTypeError, OptionError, OptionTypeError
from hbpcompiler.guards import Guards
from hbpcompiler.limits import Limits
from hbpcompiler.options import check_example, check_memory, check_model
from hbpcompiler.spectra.decompose import Products, decompose, nothing
from hbpcompiler.spectra.groups import Groups, groups_of
from hbpcompiler.spectra.phases import EXACT, SAMPLED, First, Phases, naming_the_spectrum
from hbpcompiler.spectra.repeat import Call
from hbpcompiler.spectra.room import check_room, decomposition_bytes
from hbpcompiler.spectra.spectrum import Spectrum
from hbpcompiler.wrappers import unwrapped


class CompiledSpectrum:
    """A model compiled for spectra of its GGN: `spectrum = compiled(X, y)`. Programs are kept as in `hbp.Compiled`."""

    def __init__(self, model: nn.Module, loss: Callable[..., Tensor], groups: Groups, columns: str,
                 tolerance: float | None, options: Mapping[str, Any], given: Mapping[str, Any]) -> None:
        self.model, self.loss, self.groups, self.columns, self.tolerance = model, loss, groups, columns, tolerance
        self._options, self._given = options, given
        self._phases = Phases(model, loss, groups, columns, options)
        self._outputs: dict[Any, int] = {}
        self._last: tuple[Compiled, list[int]] | None = None
        """The first phase's program used last, and the columns of a sample in each matrix that it gave."""
        self._budget = check_memory(options["memory_budget"])

    def __reduce__(self) -> tuple[Any, ...]:
        """For pickle and copy.deepcopy: made again from model, loss and options, without programs."""
        return _again, (self.model, self.loss, dict(self._given))

    def __call__(self, *batch: Any, generator: torch.Generator | None = None, **arguments: Any) -> Spectrum:
        """The spectrum on a batch (X, y), or what else a call of `hbp.Compiled` takes.

        `generator` makes the sampled columns and dropout of this call reproducible, `sample_weights` [N] weighs the
        samples' losses, as in `hbp.Compiled`. Raises InputError for a batch that does not fit or is empty.
        """
        given = check_batch(self.model, batch)
        if not given.samples:
            raise InputError("an empty batch has no spectrum; it needs one sample at least")
        if generator is not None and not isinstance(generator, torch.Generator):
            raise InputTypeError(f"generator must be a torch.Generator, not {generator!r}")
        call = Call(self.model, self.loss, batch, generator, arguments, given.tensors[0].device)
        small = self._small(given)
        first = self._phases.first(batch, small, {**arguments, "generator": generator})
        large = [found for found in first.groups.values() if isinstance(found, Products)]
        self._last = self._phases.first_program(small), [found.order // given.samples for found in large]
        eps = self._rounding(first)
        eigen = {}
        for group in self.groups:
            found = first.groups.pop(group, None)  # each is let go as soon as it is decomposed
            if found is None:
                eigen[group] = nothing(given.samples)
                continue
            check_room(found, given.samples, self._budget, given.tensors[0].device, self._options["limits"])
            eigen[group] = decompose(found, found.order * eps if self.tolerance is None else self.tolerance)
        return Spectrum(self._phases, call, first, eigen)

    def predicted_memory(self, batch_size: int) -> int:
        """Bytes that a call with so many samples allocates at most at once, as its last program and call were.

        With the decompositions. What vectors and Newton steps take is not in it. Raises CompileError before a call.
        """
        if self._last is None:
            raise CompileError("there is no program yet: it is made at the first batch. Call compiled(X, y)")
        compiled, widths = self._last
        matrices = [(batch_size * width) ** 2 for width in widths]
        held = sum(matrices) * (next(iter(self.model.parameters())).itemsize + torch.float64.itemsize)
        decomposing = decomposition_bytes(batch_size * max(widths)) if widths else 0
        return max(compiled.predicted_memory(batch_size), held + decomposing)

    def prepare(self, batch: Batch) -> None:
        """Compile the first phase's program for batches like this one, and prove it."""
        with naming_the_spectrum():
            self._phases.first_program(self._small(batch))._prepare(batch)

    def _small(self, batch: Batch) -> frozenset[str]:
        """Groups with fewer parameters than there are columns."""
        sizes = self._sizes()
        if max(sizes.values()) <= batch.samples:
            return frozenset(sizes)
        columns = batch.samples * self._columns(batch)
        return frozenset(group for group, size in sizes.items() if size < columns)

    def _sizes(self) -> dict[str, int]:
        numbers = {name: parameter.numel() for name, parameter in self.model.named_parameters()}
        return {group: sum(numbers[name] for name in names) for group, names in self.groups.items()}

    def _columns(self, batch: Batch) -> int:
        """How many a sample has: exactly so many, or as many as the model returns numbers, at most."""
        if self.columns == SAMPLED:
            return int(self._options["mc_samples"])
        if batch.form not in self._outputs:
            _, run = Guards(self.model, self.loss).probed(lambda: check_runs(self.model, self.loss, batch))
            self._outputs[batch.form] = max(1, run.numbers)
        return self._outputs[batch.form]

    def _rounding(self, first: First) -> float:
        """The coarser one of the model's and of curvature's dtype.

        Eigenvalues of float32's products were found to be off by at most 4 times it, relative to the largest one, for
        up to 3 million parameters: sums over parameters are long, but their errors cancel. So the cut goes by the order
        of the matrix that is decomposed, not by the number of parameters, which would leave only a few eigenvalues.
        """
        dtypes = [value.dtype for value in first.result.grad.values()]
        if self._options["curvature_dtype"] is not None:
            dtypes.append(self._options["curvature_dtype"])
        return max(torch.finfo(dtype).eps for dtype in dtypes)

    def __repr__(self) -> str:
        return (f"CompiledSpectrum({type(self.model).__name__}, groups={list(self.groups)}, "
                f"columns={self.columns!r})")


def _again(model: nn.Module, loss: Callable[..., Tensor], given: Mapping[str, Any]) -> CompiledSpectrum:
    return spectrum(model, loss, **given)


def spectrum(
    model: nn.Module,
    loss: Callable[..., Tensor] | None = None,
    groups: Any = "all",
    columns: str = EXACT,
    *,
    mc_samples: int = 1,
    tolerance: float | None = None,
    example_inputs: Sequence[Any] | None = None,
    backend: str = "python",
    memory_budget: int | str | None = None,
    curvature_dtype: torch.dtype | None = None,
    rules: Sequence[str | Path] | None = None,
    limits: Limits | None = None,
    verify: bool | str = True,
) -> CompiledSpectrum:
    """Compile a model for spectra of its generalised Gauss-Newton matrix (ViViT: Dangel, Tatzel, Hennig 2022).

    Args:
        model: as for `hbp.compile`.
        loss: known to be convex in the model's output, as all of torch's own are that have rules; CrossEntropyLoss() by
            default.
        groups: "all": one matrix over all trainable parameters; "layer", "parameter": a block for each module that has
            parameters of its own, for each parameter; or lists of names or shell patterns, [["0.*"], ["2.weight"]],
            or such lists by the names that the groups shall have, {"head": ["2.*"]}.
        columns: "exact", or "sampled": the Monte-Carlo estimate of the GGN from mc_samples columns a sample.
        mc_samples: of "sampled".
        tolerance: eigenvalues of at most this share of the largest one count as zero; None: the rounding of the smaller
            dtype among the model's and curvature_dtype, times the order of the matrix that is decomposed, the smaller
            one of NK and the group's number of parameters.
        example_inputs, backend, memory_budget, curvature_dtype, rules, limits, verify: as for `hbp.compile`.

    Raises:
        CompileError: (OptionError, ModelError, UnsupportedOpError, RuleError) before anything is computed;
            UnsupportedOpError also for a loss that is not known to be convex, at the first batch.
    """
    loss = nn.CrossEntropyLoss() if loss is None else loss
    model = unwrapped(model)
    check_model(model, loss)
    _check_columns(columns, mc_samples, tolerance)
    options = {"mc_samples": mc_samples, "backend": backend, "memory_budget": memory_budget,
               "curvature_dtype": curvature_dtype, "rules": rules, "limits": limits, "verify": verify}
    given = {"groups": groups, "columns": columns, "tolerance": tolerance, **options}
    compiled = CompiledSpectrum(model, loss, groups_of(model, groups), columns, tolerance, options, given)
    if example_inputs is not None:
        compiled.prepare(check_batch(model, check_example(example_inputs)))
    return compiled


def _check_columns(columns: Any, mc_samples: Any, tolerance: Any) -> None:
    if not isinstance(columns, str) or columns not in (EXACT, SAMPLED):
        raise OptionError(f"columns {columns!r} is unknown; choose {EXACT!r} or {SAMPLED!r}")
    if columns == EXACT and mc_samples != 1:
        raise OptionError(f"mc_samples={mc_samples!r} is for columns={SAMPLED!r}; exact columns are not drawn")
    number = isinstance(tolerance, int | float) and not isinstance(tolerance, bool)
    if tolerance is not None and not number:
        raise OptionTypeError(f"tolerance must be a number or None, not {tolerance!r}")
    if tolerance is not None and not 0 <= tolerance < 1:
        raise OptionError(f"tolerance is a share of the largest eigenvalue, from 0 to less than 1, not {tolerance}")

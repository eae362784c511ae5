"""`hbp.ekfac`: Kronecker factors in one pass over the data, and in their eigenvectors second moments in another."""

from __future__ import annotations

import contextlib
import inspect
import itertools
from collections import namedtuple
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from hbpcompiler.accumulate import Total, accumulate
from hbpcompiler.accumulate.batches import arguments_of, is_loader
from hbpcompiler.accumulate.ranks import Ranks
from hbpcompiler.compiled import Compiled, compile
from hbpcompiler.compiler.trace.checks import check_batch
from hbpcompiler.curvature import Curvature, curvature
from hbpcompiler.ekfac.bases import Decomposed, agreed, eigenbases
from hbpcompiler.ekfac.structure import Met, Structure, joined, met_by, structure_of
from hbpcompiler.entries import advice_for, not_cut
from hbpcompiler.errors import HbpError, InputError, InputTypeError, NoTermsError, OptionError, listing
from hbpcompiler.patterns import fits
from hbpcompiler.values import Values
from hbpcompiler.wrappers import unwrapped


class Names(NamedTuple):
    """The quantities that one kind of columns takes."""

    factors: str
    eigenvalues: str
    diagonal: str


EXPAND, REDUCE = "expand", "reduce"
POSITIONS = (EXPAND, REDUCE)
COLUMNS: Mapping[str, Names] = {
    "sampled": Names("kfac", "eigenvalues_mc", "diag_ggn_mc"),
    "exact": Names("kflr", "eigenvalues", "diag_ggn"),
    "empirical": Names("kfac_emp", "eigenvalues_emp", "second_moment"),
}
OWN = frozenset({"compiled", "loader", "checkpoint", "group", "arguments", "model", "loss", "quantities", "groups",
                 "clipping", "example_inputs"})
"""Of `accumulate` and `compile`, what is not for the caller to say."""
OF_PASSES = frozenset(inspect.signature(accumulate).parameters) - OWN
OF_PROGRAMS = frozenset(inspect.signature(compile).parameters) - OWN

Factors = namedtuple("Factors", "A B")


def ekfac(model: nn.Module, loss: Callable[..., Tensor] | None, loader: Iterable[Any], columns: str = "sampled", *,
          positions: str = EXPAND, parameters: Sequence[str] = ("*",), diagonal: Sequence[str] = (),
          largest_factor: int = 8192, checkpoint: str | Path | None = None, group: Any = None,
          **options: Any) -> Curvature:
    """Eigenvalue-corrected Kronecker factorisation of a whole data set's curvature (George et al. 2018).

    A first pass over the loader adds up Kronecker factors A and B of each weight. With their eigenvectors Q_A and Q_B,
    found in float64, a second pass takes the mean of the squares of each sample's own columns there, T_nk [out, in]:

        eigenvalues = c sum_{n,k} (Q_B^T T_nk Q_A)^2,    c = 1/N for a mean loss and 1 for a sum.

    The block (Q_B (x) Q_A) diag(eigenvalues) (Q_B (x) Q_A)^T is, of all with these eigenvectors, the nearest one to the
    block itself in Frobenius norm, so never further off than B (x) A. It is on the scale that one batch of all samples
    would have. Parameters without input features (biases, scales of norms) have their whole block, and those with
    factors that would be too large (embeddings of many words) their diagonal.

    Args:
        model: as for `hbp.compile`.
        loss: as there; None: CrossEntropyLoss().
        loader: of batches, as for `hbp.accumulate`. It is read twice, and before that up to the batch with which all
            of `parameters` have been met: the first one, unless forwards take other ways with other batches or
            parameters reach no loss at all. It has to give the same samples each time, in whatever batches.
        columns: "sampled" from the model's own predictions (mc_samples=1 a sample), "exact" ones of the generalised
            Gauss-Newton matrix, or "empirical": the gradients at the targets that are there.
        positions: "expand" or "reduce" (Eschenhagen et al. 2023): how factors treat positions that share a weight;
            eigenvalues are of whole samples in both.
        parameters: names or shell patterns of those that get a block.
        diagonal: of those that get a diagonal whatever their factors are.
        largest_factor: parameters with a factor of more rows, or with uses that have no common factors, get one too.
        checkpoint: a path; beside it lie its files "<path>.factors", ".bases" and ".eigenvalues", that an interrupted
            run goes on from, as `hbp.accumulate` does.
        group: a torch.distributed group, each rank with its own part of the data, as for `hbp.accumulate`. A
            decomposition is made by one rank, and all get the result.
        options: what else `hbp.accumulate` takes (dtype, compensated, count, prepare, seed, progress, max_batches, ...)
            and `hbp.compile` (mc_samples, joint_bias, backend, memory_budget, curvature_dtype, limits, verify, ...).

    Returns:
        The curvature, with `EigenKronecker`, `Dense` and `Diagonal` blocks in the totals' dtype (float64).

    Raises:
        OptionError: for options that there are not, and patterns that fit no parameter.
        InputError: as `hbp.accumulate`; for a loader that can be read only once, or that gives another number of
            samples the second time.
    """
    _check_given(model, loader, {"parameters": parameters, "diagonal": diagonal})
    _check(columns, positions, largest_factor, loader, options)
    names = COLUMNS[columns]
    names = names if positions == EXPAND else names._replace(factors=f"{names.factors}_reduce")
    for_programs = {name: value for name, value in options.items() if name in OF_PROGRAMS}
    for_passes = {name: value for name, value in options.items() if name in OF_PASSES}
    ranks = Ranks(group)
    run = _Run(unwrapped(model), nn.CrossEntropyLoss() if loss is None else loss, loader, for_programs,
               {**for_passes, "group": group}, ranks)
    structure = run.structure(tuple(parameters), tuple(diagonal), largest_factor)
    asked = {names.factors: structure.factors, names.diagonal: structure.diagonal}
    first = run.total({name: own for name, own in asked.items() if own}, _beside(checkpoint, "factors"))
    values, factors, stored = _first_pass(first, names)
    samples, weights = first.samples, first[next(iter(first))].weights
    del first  # its sums are as large as what is made of them
    if factors:
        path = _beside(checkpoint, "bases")
        bases = eigenbases(factors, ranks, path)
        factors.clear()
        biases = [stored[name].bias for name in bases if stored[name].bias]  # in the weights' blocks
        second = run.total({names.eigenvalues: (*bases, *biases)}, _beside(checkpoint, "eigenvalues"),
                           {"bases": bases})
        if second.samples != samples:
            raise InputError(f"the loader gave {samples} samples, and {second.samples} when it was read again: "
                             "eigenvalues have to be of the data that the eigenvectors are of")
        for name, (inner, outer) in bases.items():
            values[name] = Decomposed(inner, outer, second[names.eigenvalues][name])
    found = curvature(Values({name: values[name] for name in stored if name in values}, "ekfac", stored))
    found.weights = weights
    return found


def _check_given(model: Any, loader: Any, patterns: Mapping[str, Any]) -> None:
    findings = [] if isinstance(model, nn.Module) else [f"the model is a {type(model).__name__}, no nn.Module"]
    if not is_loader(loader):
        findings.append(f"the loader is a {type(loader).__name__}, no iterable of batches (X, y)")
    for name, given in patterns.items():
        if not isinstance(given, list | tuple) or not all(isinstance(pattern, str) for pattern in given):
            findings.append(f"{name} is a list of names or shell patterns of parameters, not {given!r}")
    if findings:
        raise InputTypeError(listing("these arguments are wrong:", findings))


class _Run:
    """Passes over one loader with one model."""

    def __init__(self, model: nn.Module, loss: Callable[..., Tensor], loader: Iterable[Any],
                 for_programs: Mapping[str, Any], for_passes: Mapping[str, Any], ranks: Ranks) -> None:
        self.model, self.loss, self.loader = model, loss, loader
        self._for_programs, self._for_passes, self._ranks = for_programs, for_passes, ranks

    def _compiled(self, quantities: Any, **changes: Any) -> Compiled:
        return compile(self.model, self.loss, quantities, **{**self._for_programs, **changes})

    def structure(self, parameters: Sequence[str], diagonal: Sequence[str], largest_factor: int) -> Structure:
        """By the first batches of all ranks."""
        trainable = [name for name, own in self.model.named_parameters() if own.requires_grad]
        found: dict[str, Met] = {}
        failure: HbpError | None = None
        try:
            found = self._met({name for name in trainable if fits(name, parameters, trainable)})
        except HbpError as error:
            failure = error
        whole = joined(agreed(self._ranks, "a batch failed", failure, found))
        if not whole:
            raise InputError("the loader gave no samples: there is nothing to accumulate")
        return structure_of(whole, trainable, parameters, diagonal, largest_factor)

    def _met(self, wanted: set[str]) -> dict[str, Met]:
        """How batches meet the parameters: the first one, and others of another form until all that are `wanted` are
        met."""
        gradient = self._compiled(["grad"], verify=False)
        prepare, device = self._for_passes.get("prepare"), next(self.model.parameters()).device
        forms: dict[Any, dict[str, Met]] = {}
        for number, item in enumerate(itertools.islice(self.loader, self._for_passes.get("max_batches"))):
            try:
                batch = check_batch(self.model, arguments_of(item, prepare, device))
                if not batch.samples or batch.form in forms:
                    continue
                with contextlib.suppress(NoTermsError):
                    forms[batch.form] = met_by(gradient, batch)
            except InputError as error:
                advice = not_cut(self.loader) + advice_for(error, item, prepare)
                raise type(error)(f"batch {number} of the loader: {error}{advice}") from error
            if wanted <= joined(forms.values()).keys():
                break
        return joined(forms.values())

    def total(self, quantities: Mapping[str, Sequence[str]], checkpoint: Path | None,
              arguments: Mapping[str, Any] | None = None) -> Total:
        """One pass."""
        compiled = self._compiled({name: list(own) for name, own in quantities.items()})
        return accumulate(compiled, self.loader, checkpoint=checkpoint, arguments=arguments, **self._for_passes)


def _first_pass(total: Total, names: Names) -> tuple[dict[str, Any], dict[str, Any], Mapping[str, Any]]:
    """Blocks that are complete after the first pass, factors of the others, and how all parameters lie."""
    complete: dict[str, Any] = {}
    factors: dict[str, Any] = {}
    for name, pair in total[names.factors].items() if names.factors in total else ():
        (complete if pair.A is None else factors)[name] = Factors(*pair)
    if names.diagonal in total:
        scale = total.samples if names.diagonal == "second_moment" and not total.is_mean else 1
        complete |= {name: value * scale for name, value in total[names.diagonal].items()}
    return complete, factors, total.stored


def _beside(checkpoint: str | Path | None, part: str) -> Path | None:
    if checkpoint is None:
        return None
    path = Path(checkpoint)
    return path.with_name(f"{path.name}.{part}")


def _check(columns: Any, positions: Any, largest_factor: Any, loader: Any, options: Mapping[str, Any]) -> None:
    findings = []
    if not isinstance(columns, str) or columns not in COLUMNS:
        findings.append(f"columns must be one of {', '.join(map(repr, COLUMNS))}, not {columns!r}")
    if positions not in POSITIONS:
        findings.append(f"positions must be one of {', '.join(map(repr, POSITIONS))}, not {positions!r}")
    if isinstance(largest_factor, bool) or not isinstance(largest_factor, int) or largest_factor < 1:
        findings.append(f"largest_factor must be a positive number of rows, not {largest_factor!r}")
    for name in options:
        if name not in OF_PASSES | OF_PROGRAMS:
            findings.append(f"there is no option {name!r}; there are {', '.join(sorted(OF_PASSES | OF_PROGRAMS))}")
    if findings:
        raise OptionError(listing("hbp.ekfac cannot do this:", findings))
    if iter(loader) is loader:
        raise InputError(f"the loader is a {type(loader).__name__} that can be read only once, and ekfac takes two "
                         "passes: hand over a DataLoader, or a list of batches")

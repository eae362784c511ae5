"""`hbp.compile` and what it returns: programs made at the first batch and kept per shape, dtype, device and mode."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import networkx as nx
import torch
from torch import Tensor, nn

from hbpcompiler.arguments import (
    SAMPLE_WEIGHTS,
    Brought,
    check_fit,
    of_reached,
)
from hbpcompiler.block_product import block_product
from hbpcompiler.calls.calls import Calls, reduction_of
from hbpcompiler.calls.into import kept
from hbpcompiler.clipping import FLAT
from hbpcompiler.compiler.built import Built
from hbpcompiler.compiler.match.losses.endings import check_weighable
from hbpcompiler.compiler.match.losses.targets import check_targets
from hbpcompiler.compiler.prove.candidate import can_weigh
from hbpcompiler.compiler.prove.draws import Draws
from hbpcompiler.compiler.prove.trials import settled
from hbpcompiler.compiler.prove.verification import Verification
from hbpcompiler.compiler.stages import rare_collections
from hbpcompiler.compiler.trace.batch import Batch
from hbpcompiler.compiler.trace.checks import check_batch
from hbpcompiler.errors import InputError
from hbpcompiler.explain import explain
from hbpcompiler.guards import TRACING, State
from hbpcompiler.limits import Limits
from hbpcompiler.options import Options, check_example, check_model, check_options, check_patterns
from hbpcompiler.result import Result
from hbpcompiler.schemes import HESSIAN
from hbpcompiler.wrappers import left_alone, unwrapped


class Compiled(Calls):
    """A model compiled for some quantities. Call it with a batch: `result = compiled(X, y)`.

    The model's parameters and buffers are read live at each call and never changed. A program is traced at the first
    batch (or at once from `example_inputs`), serves every batch size, and is kept per input shape, dtype, device and
    state of Python: modes, plain attributes, hooks, functions, autocast (see `guards`); of more than 64
    (`Limits.kept_programs`) those that were used last. Several threads may compile and call at once.
    """

    def __init__(self, model: nn.Module, loss: Callable[..., Tensor], options: Options,
                 given: Mapping[str, Any] | None = None) -> None:
        super().__init__(model, loss, options)
        self._given = given or {}
        self._others: dict[str, Compiled] = {}
        """The same model for other quantities, by what they are."""

    def instead(self, quantities: Sequence[str] | Mapping[str, str | Sequence[str]],
                groups: Mapping[str, str | Sequence[str]] | None = None) -> Compiled:
        """The same model, loss and options for other quantities (and groups of parameters), as `compile` takes them;
        kept, as its programs are."""
        return self._with(quantities=quantities, groups=groups)

    def names_in(self, argument: str, *batch: Any) -> tuple[str, ...]:
        """The names in a dict of tensors that calls with batches like this one take: in "directions", those of the
        parameters that influence the loss."""
        return tuple(self._program(check_batch(self.model, batch))[1].asks[argument])

    def also(self, *quantities: str) -> Compiled:
        """The same model, loss and options for these quantities of all parameters too; kept, as its programs are."""
        asked = self._given["quantities"]
        more = {**asked, **dict.fromkeys(quantities, "*")} if isinstance(asked, Mapping) else [*asked, *quantities]
        return self._with(quantities=more)

    def _with(self, **changes: Any) -> Compiled:
        key = repr(changes)
        if key not in self._others:
            self._others[key] = _again(self.model, self.loss, {**self._given, **changes})
        return self._others[key]

    def __reduce__(self) -> tuple[Any, ...]:
        """For pickle and copy.deepcopy: made again from model, loss and options, without programs."""
        return _again, (self.model, self.loss, dict(self._given))

    @property
    def quantities(self) -> tuple[str, ...]:
        """The quantities, in the table's order."""
        return self.options.quantities

    @left_alone
    def __call__(self, *batch: Any, generator: torch.Generator | None = None, into: Any = None,
                 decay: float | None = None, weight: float | None = None, **arguments: Any) -> Result:
        """Run the program on (X, y); on (X1, X2, ..., y) or ((X1, X2), y) for a model of several inputs, or on
        ({"name": X, ...}, y) with the arguments of its forward by name. y may be a tuple or dict of tensors.

        `generator` makes all random draws of this call (mc_samples, dropout) reproducible; without it they come from
        torch's global generator. `arguments` are what the quantities take beside the batch (docs/call-arguments.md):
        with `sample_weights`, w [N], every quantity is that of sum_n w_n l_n (over N for a mean loss); clipped_grad
        takes `max_norm`, a positive number (per parameter also a dict of them by name).

        With `into`, an earlier result or a dict of its quantities, {"kfac": previous.kfac}, the results are added to
        the tensors in it, in their memory: each becomes decay * itself + weight * this batch's (1 and 1 if they are not
        given; with decay=0 whatever it was). The result returned has these tensors; loss, output and quantities that
        `into` does not name are this batch's own. They may be of a wider dtype, as float64 of a model in float32.

        Raises InputError for a batch, or an argument, that does not fit, before anything is computed or changed.
        """
        given = check_batch(self.model, batch)
        return self._called(given, self._beside(arguments, given), generator, into=kept(into, decay, weight))

    def block_product(self, result: Result, name: str, vectors: Tensor) -> Tensor:
        """The block of parameter `name` times one vector, [*theta], or many, [*batch, *theta].

        `result` is what a call with the quantity "block" returned. The block is that of the Hessian of L in this one
        parameter, or of what `curvature` put in its place. For each vector, time and memory are those of one pass
        of the N samples' columns through the layer: nothing of size N K times the parameter is made. Raises InputError
        without that quantity, for an unknown name, and for vectors of another shape or dtype.
        """
        if not isinstance(result, Result) or not result.is_of(self.model):
            raise InputError("block_product takes a result that this compiled model returned")
        return block_product(result, name, vectors)

    def verify(self, *batch: Any, full: bool = True, **arguments: Any) -> Verification:
        """Run the program on a batch beside the model's own forward, loss and backward: the table of errors.

        Loss, outputs and gradient are compared; with `full` the other quantities too, on the batch's first two samples.
        Nothing changes, no random generator either. A difference is in the table (see `agrees`) and raises nothing;
        raised is what a call raises for a batch that does not fit, and ProofError where the model's own step fails.
        """
        given = check_batch(self.model, batch)
        asked = self._beside(arguments, given)
        state, built = self._program(given)
        beside = of_reached(asked, built.matched.unused)
        check_fit(beside, built.asks)
        weights = beside.get(SAMPLE_WEIGHTS)
        if weights is not None:
            check_weighable(built.matched.ending, built.matched.rules)
            if not can_weigh(built.matched, weights):
                raise InputError("verify weighs the model's own training step where its outputs show the samples "
                                 "apart, and this one's do not, or the weights of the first two are zero: leave "
                                 "sample_weights out")
        check_targets(built.losses, built.matched.graph, given)
        found = self._verified(state, built, given, beside, full)
        if found.agrees or not built.reused or built.proven:
            return found
        state, built = self._anew(state, built, given, Brought())
        return self._verified(state, built, given, beside, full)

    def _verified(self, state: State, built: Built, given: Batch, beside: Mapping[str, Any],
                  full: bool) -> Verification:
        with self._undone(state), TRACING:
            candidate, draws = self._candidate(state, built, beside), Draws.now(given.tensors[0].device)
            return settled(candidate, built.as_asked(given), draws, full)

    @property
    def code(self) -> str:
        """The generated file's text (of the program used last)."""
        return self._current().draft.code

    @property
    def path(self) -> Path:
        """The file that the program was loaded from."""
        return self._current().path

    @property
    def program(self) -> Any:
        """The loaded `Program`: `program(state, X, y)`, a module that the chosen backend has prepared."""
        return self._current().program

    @property
    def reduction(self) -> str:
        """Of the loss: "mean", L = (1/N) sum_n l_n; "sum", L = sum_n l_n; "" if it is neither: l_n has no scale."""
        return reduction_of(self._current())

    @property
    def graph(self) -> nx.DiGraph:
        """The traced model and loss as a networkx graph."""
        return self._current().matched.graph.network()

    @property
    def state(self) -> dict[str, Tensor]:
        """The first argument of `program`: parameters, buffers and the loss's own tensors by name."""
        state, built = self._program_used()
        return self._tensors(state, built)

    def save(self, path: str | Path) -> Path:
        """Write the generated file; it needs only torch. One for any length refuses lengths outside of those that the
        program has been tried at, which its calls so far and `dynamic` say."""
        target, (state, built) = Path(path), self._program_used()
        target.write_text(self._lengths.told(state, built), encoding="utf-8")
        return target

    def explain(self, batch_size: int = 64) -> str:
        """The plan as tables: what travels, in which form; what is saved; per parameter the routes, rejected ones too.

        Costs are polynomials in N, predicted times and memory are for this batch size. A last line says how long each
        stage of compilation took.
        """
        state, built = self._program_used()
        return explain(built.matched, built.draft, batch_size, built.seconds, self._lengths.in_words(state, built))

    def predicted_seconds(self, batch_size: int) -> float:
        """The time of a call with so many samples, by the planner's model of cost (see `program_cost`)."""
        return sum(self._current().draft.cost.seconds(batch_size).values())

    def predicted_memory(self, batch_size: int, *, sample_weights: bool = False, vectors: int | None = None) -> int:
        """Bytes that a call with so many samples allocates at most at once, results included (see `memory`).

        `sample_weights` says whether the call brings some, `vectors` how many directions, or weights of each column;
        None stands for `Limits.typical_vectors`, 8.
        """
        return self._current().draft.memory.of(Brought(sample_weights, vectors)).peak(batch_size)

    def __repr__(self) -> str:
        return (f"Compiled({type(self.model).__name__}, quantities={list(self.quantities)}, "
                f"backend={self.options.backend!r}, programs={len(self._guards)})")


def _again(model: nn.Module, loss: Callable[..., Tensor], given: Mapping[str, Any]) -> Compiled:
    return compile(model, loss, **given)


def compile(  # the public name is the design's
    model: nn.Module,
    loss: Callable[..., Tensor] | None = None,
    quantities: Sequence[str] | Mapping[str, str | Sequence[str]] = (),
    *,
    example_inputs: Sequence[Any] | None = None,
    backend: str = "python",
    memory_budget: int | str | None = None,
    mc_samples: int = 1,
    curvature: str = HESSIAN,
    curvature_dtype: torch.dtype | None = None,
    autotune: bool = False,
    rules: Sequence[str | Path] | None = None,
    limits: Limits | None = None,
    verify: bool | str = True,
    joint_bias: bool = False,
    groups: Mapping[str, str | Sequence[str]] | None = None,
    clipping: str = FLAT,
    dynamic: Mapping[str, Sequence[int]] | bool | None = None,
) -> Compiled:
    """Compile a model and a loss into a program for the quantities asked for.

    Args:
        model: any torch.nn.Module that torch.export can trace. DataParallel, DistributedDataParallel and what
            torch.compile returned are taken off; names in results are those of the model inside.
        loss: a module or function of (output, target) returning one number; nn.CrossEntropyLoss() by default.
        quantities: names from docs/quantities.md; or a dict from names to shell patterns of the parameters that they
            are for, {"kfac": ["layer1.*", "head.weight"], "grad": "*"}.
        example_inputs: (X, y), or what else a call takes, to trace at once.
        backend: "python", "torchscript" or "inductor".
        memory_budget: bytes, or "2GiB": the most that a call may allocate, results included; larger batches are
            refused. None: most of what the machine, or the device, has free when a large call is made.
        mc_samples: random columns per sample, for the sampled quantities.
        curvature: what the quantities of the Hessian mean by it: "hessian", exact; "ggn", without the operations'
            residuals; "pch_abs" or "pch_clip", with their negative eigenvalues turned positive or dropped (Dangel,
            Harmeling, Hennig 2020; see `schemes` for operations that are not elementwise).
        curvature_dtype: torch.bfloat16, say, for the columns of curvature alone (see `precision`); None: the model's.
        autotune: time routes that are predicted to be about as fast as the best, once, on random tensors of the first
            batch's size.
        rules: paths of rule files of your own.
        limits: the thresholds to plan by (`Limits`, each with its reason); None: those that `hbp tune` measured on this
            machine, or the default ones.
        verify: compare each new program with the model's own forward and backward on its first batch, and keep it only
            if loss, outputs and gradient agree to rounding; "full": the other quantities too, on two samples.
        joint_bias: whether the Kronecker factors of a weight [out, in] are also of the bias of its layer, with A
            [in + 1, in + 1] of the inputs with a one behind them. The bias has none of its own then;
            `Result.joint_biases` says which these are.
        groups: for quantities by group (`gram`, `cross`): a dict from names of your choice to the names of their
            parameters, or shell patterns of some; None: one group, "all", of all of them.
        clipping: how clipped_grad weighs a sample by the norm of its gradient: "flat", by the norm over all parameters;
            "automatic", the same without a threshold; "opacus", flat as Opacus rounds it; "per_parameter", at each
            parameter by itself (see `clipping`).
        dynamic: axes whose lengths vary together, {"x": [1], "y": [1]}, by the names of the batch's tensors in the
            generated file: one program is made for every length of theirs at the first batch. None: when a second
            length arrives. False: a program for each length.

    Raises:
        CompileError: (OptionError, ModelError, UnsupportedOpError, RuleError) before anything is computed.
    """
    loss = nn.CrossEntropyLoss() if loss is None else loss
    model = unwrapped(model)
    check_model(model, loss)
    with rare_collections():  # the first call reads all rules
        options = check_options(quantities, backend, memory_budget, mc_samples, rules, curvature, autotune,
                                curvature_dtype, limits, verify, joint_bias, groups, clipping, dynamic)
    given = {"quantities": quantities, "backend": backend, "memory_budget": memory_budget, "mc_samples": mc_samples,
             "curvature": curvature, "curvature_dtype": curvature_dtype, "autotune": autotune,
             "limits": limits, "verify": verify, "joint_bias": joint_bias, "groups": groups, "clipping": clipping,
             "dynamic": dynamic, "rules": None if rules is None else [Path(path).resolve() for path in rules]}
    options = replace(options, chosen=options.chosen.of(dict(model.named_parameters(remove_duplicate=False))))
    check_patterns(model, options.chosen)
    compiled = Compiled(model, loss, options, given)
    if example_inputs is not None:
        compiled._prepare(check_batch(model, check_example(example_inputs)))
    return compiled

"""Stage 1, first half: model and loss through torch.export, and what went wrong in the user's terms."""

from __future__ import annotations

import keyword
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.export.graph_signature import OutputKind
from torch.fx import graph as fx_graph

from hbpcompiler.compiler.trace.batch import Batch
from hbpcompiler.compiler.trace.conditions.asked import Asked, questions
from hbpcompiler.compiler.trace.conditions.one_sample import ways_of_one_noted
from hbpcompiler.compiler.trace.conditions.sizes import sizes_of
from hbpcompiler.compiler.trace.conditions.values import Answers, told_again
from hbpcompiler.compiler.trace.conditions.ways import Ways, lengths_of_many
from hbpcompiler.compiler.trace.containers import StrangerError, Structure, take_apart
from hbpcompiler.compiler.trace.fx_graph.functional import functional
from hbpcompiler.compiler.trace.fx_graph.gradients_off import without_their_derivatives
from hbpcompiler.compiler.trace.fx_graph.written_views import written_elsewhere
from hbpcompiler.compiler.trace.patches.draws import draws_in_sight
from hbpcompiler.compiler.trace.patches.equivalents import (
    module_equivalents,
    plain_ways,
    rows_keep_their_places,
    unchecked_distributions,
    without_backward_hooks_of_all,
)
from hbpcompiler.compiler.trace.patches.lengths import symbolic_lengths, symbolic_numbers
from hbpcompiler.compiler.trace.patches.many_rows import shortcuts_not_taken
from hbpcompiler.compiler.trace.patches.other_threads import modules_of_this_thread
from hbpcompiler.compiler.trace.patches.shapes import right_shapes
from hbpcompiler.compiler.trace.quiet import prints_of_what_succeeds, quiet_loggers
from hbpcompiler.compiler.trace.refusals.advice import OF_SIZES, of_trace
from hbpcompiler.compiler.trace.refusals.from_outside import FromOutside
from hbpcompiler.compiler.trace.refusals.generators import OwnGenerators
from hbpcompiler.compiler.trace.refusals.listed import refuse_listed
from hbpcompiler.compiler.trace.refusals.refusals import (
    CONTROL,
    PICKED,
    CannotFollowError,
    Fixing,
    classes_given,
    of_constants,
    place_of_error,
    refusals,
)
from hbpcompiler.compiler.trace.rows.picked import whole_rows
from hbpcompiler.compiler.trace.rows.same_masks import SameMasks
from hbpcompiler.compiler.trace.rows.saved_work import note_literals, only_saving_work
from hbpcompiler.compiler.trace.source.source import (
    OUTERMOST,
    LossModule,
    sizes_by_users_lines,
    source_of,
    whole_stacks,
)
from hbpcompiler.compiler.trace.with_state import marking, ordinary_mode
from hbpcompiler.errors import ModelError, NoLossError, UnsupportedOpError, listing
from hbpcompiler.rule import ModuleRule
from hbpcompiler.rule.faults import is_noted
from hbpcompiler.system.threads import followed

TRACED_BATCH = 7
"""torch.export specialises a batch of one, and a prime is unlikely to equal another length of the model."""


class _Whole(nn.Module):
    """Model and loss as one module, so that one graph holds both: of a batch's tensors, the loss and all outputs."""

    def __init__(self, model: nn.Module, loss: Callable[..., Tensor], arguments: Callable[[Sequence[Tensor]], Any],
                 returned: Callable[[Structure], None], surroundings: Callable[[], AbstractContextManager[None]],
                 conditions: Callable[[], Sequence[Any]]) -> None:
        super().__init__()
        self.model = model
        self.loss = LossModule(loss)
        # Functions, because torch.export copies attributes and puts them back as they were.
        self.arguments, self.returned, self.surroundings = arguments, returned, surroundings
        self.conditions, self.mark = conditions, marking(self)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        self.mark(self)
        with self.surroundings():
            return *self._run(tensors), *self.conditions()

    def _run(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        arguments, keywords, target = self.arguments(tensors)
        output = self.model(*arguments, **keywords)
        try:
            outputs, structure = take_apart(output, leave_out=True)
        except StrangerError as stranger:
            raise ModelError(
                f"the model's output{stranger.path} is a number that depends on the batch, which is neither a tensor "
                "nor a constant; leave it out, or wrap the model in a module whose forward returns what the loss takes"
            ) from None
        if not outputs:
            raise ModelError(f"the model must return a tensor or several, but returned {type(output).__name__}")
        self.returned(structure)
        loss = self.loss(output, target)
        if not isinstance(loss, Tensor) or loss.dim() != 0:
            raise NoLossError("the loss must return one number (a tensor without axes), but returned "
                              f"{_no_loss(loss)}", loss)
        if loss.is_complex():
            raise ModelError(f"the loss must return a real number, but returned one of {loss.dtype}; end it in .abs(), "
                             ".real, or what else is meant")
        return loss, *outputs


def _no_loss(returned: Any) -> str:
    """What a loss returned instead of a number, and what to do about it."""
    if isinstance(returned, Tensor):
        return f"a tensor of shape {_shown(returned.shape)}; use reduction='mean' or 'sum', .mean() or .sum()"
    if isinstance(returned, torch.SymFloat | torch.SymInt | int | float):
        return "a number of Python's; leave .item(), float() or .detach() out, which cut the derivative off"
    return type(returned).__name__ + ("; is a return missing?" if returned is None else (
        "; pass what is to be differentiated alone: lambda output, target: loss(output, target)[0], or [\"loss\"]"))


def _shown(shape: Sequence[Any]) -> str:
    return "[" + ", ".join(str(length) if isinstance(length, int) else "N" for length in shape) + "]"


def export(model: nn.Module, loss: Callable[..., Tensor], batch: Batch,
           modules: Mapping[type[nn.Module], ModuleRule] | None = None,
           answers: Answers | None = None, samples: int = TRACED_BATCH) -> tuple[Any, Structure]:
    """The ExportedProgram of the batch's tensors -> (loss, *outputs), functional, composites kept whole; how the
    model's output is built of `outputs`.

    `modules` are traced through their rules' forward; `answers` are what Python code made of tensors' values in a run;
    `samples` is the size of the batch that Python code meets, of which the program holds the conditions (see `sizes`).
    Raises ModelError where torch.export cannot follow the model, naming module and line.
    """
    with warnings.catch_warnings(), quiet_loggers(), quoted_names(), right_shapes(model), sizes_by_users_lines(), \
            ways_of_one_noted(), module_equivalents(model, modules or {}), without_backward_hooks_of_all(), \
            rows_keep_their_places(model), shortcuts_not_taken(), modules_of_this_thread():
        warnings.simplefilter("ignore")
        fixing: list[Fixing] = []
        try:
            return _exported(model, loss, batch, answers or {}, samples, fixing)
        except Exception as error:
            if isinstance(error, ModelError | UnsupportedOpError) or is_noted(error):
                raise
            spaces = [place.space for place in fixing if place.line]
            if spaces and _fixes_size(error):
                try:
                    with symbolic_numbers(spaces):
                        return _exported(model, loss, batch, answers or {}, samples, [])
                except Exception:  # it was not int() or float() alone: the first error says what
                    pass
            raise _untraceable(model, batch, error, [place.line for place in fixing]) from error


def _exported(model: nn.Module, loss: Callable[..., Tensor], batch: Batch, answers: Answers, samples: int,
              fixing: list[Fixing]) -> tuple[Any, Structure]:
    with ordinary_mode():
        few = batch.rows(samples)
    dynamic = ({0: torch.export.Dim.DYNAMIC},) * len(few)
    returned, layout = list[Structure](), batch.layout

    def traced(ways: Ways) -> Any:
        """One ExportedProgram; it puts out, last, the conditions that it meets."""
        whole = _Whole(model, loss, lambda tensors: layout.build(tensors), lambda structure: returned.append(structure),
                       lambda: _surroundings(answers, fixing, ways), lambda: ways.conditions)
        whole.training = model.training  # not train(): that would reach into the user's modules
        # without gradients nothing would be seen that turns them off
        with ordinary_mode(), prints_of_what_succeeds():
            program = torch.export.export(whole, few, dynamic_shapes=(dynamic,), strict=False)
        note_literals(program)
        without_their_derivatives(program)
        return program

    ways = Ways()
    program = traced(ways)
    structure = returned[-1]
    _check_any_size(program)
    written, zero_means = only_saving_work(
        functional(program), ways, lambda other: (functional(traced(other)), returned[-1] == structure))
    whole = whole_rows(written, zero_means)
    _check_parameters_stay(whole)
    _check_writes_any_size(program)
    refuse_listed(model, program.constants)
    whole.asked = Asked(ways.asked)
    return whole, structure


@contextmanager
def _surroundings(answers: Answers, fixing: list[Fixing], ways: Ways) -> Iterator[None]:
    """What the user's code meets while it is traced."""
    ways.begin()
    with (told_again(answers, OUTERMOST, ways), lengths_of_many(ways), symbolic_lengths(), plain_ways(),
          unchecked_distributions(), refusals(fixing), classes_given(), whole_stacks(), SameMasks(), FromOutside(),
          draws_in_sight(), OwnGenerators(), questions(ways.asked), followed()):
        yield


def _check_parameters_stay(program: Any) -> None:
    """A parameter that forward changes in place is another one at each call."""
    nodes = {node.name: node for node in program.graph.nodes}
    changed = [f"{str(spec.target).removeprefix('model.')!r}, {source_of(nodes[spec.arg.name])}"
               for spec in program.graph_signature.output_specs if spec.kind is OutputKind.PARAMETER_MUTATION]
    if changed:
        raise ModelError(listing("The model or the loss changes parameters in place, which a program never does; "
                                 "change them outside, or compute another tensor, as in w = w.clamp(0):", changed))


def _check_any_size(program: Any) -> None:
    """torch.export may fix a number such as 1 / x.shape[0] to its value at TRACED_BATCH."""
    if found := sizes_of(program).fixing():
        raise _fixed(found)


def _fixed(lines: Sequence[str]) -> ModelError:
    return ModelError(listing(
        "The model cannot be traced: its code fixes the batch's size, and a program serves others too; write it for "
        "any:", lines, "What torch takes as a plain number (eps, beta, p) must not depend on x.shape[0]; it can "
        "multiply, divide or bound a tensor."))


def _check_writes_any_size(program: Any) -> None:
    """Torch may write what goes to a view that is no part (of unfold, say) for TRACED_BATCH alone."""
    if not (found := sizes_of(program).fixing()):
        return
    writes = list(dict.fromkeys(str(source_of(node)) for node in written_elsewhere(program.graph)))
    if not writes:
        raise _fixed(found)
    raise ModelError(listing(
        "The model cannot be traced: what it writes in place to a view is written for one batch size alone; write to "
        "slices, select or diagonal, or make a new tensor (torch.where, torch.cat):", writes))


@contextmanager
def quoted_names() -> Iterator[None]:
    """torch.fx writes module names unquoted into code that it runs, so a name could be code: quote them meanwhile."""
    original = fx_graph._format_target

    def quoted(base: str, target: str) -> str:
        for name in target.split("."):
            plain = name.isidentifier() and not keyword.iskeyword(name)
            base = f"{base}.{name}" if plain else f"getattr({base}, {name!r})"
        return base

    fx_graph._format_target = quoted
    try:
        yield
    finally:
        fx_graph._format_target = original


def _fixes_size(error: Exception) -> bool:
    """Whether torch says that code makes a plain number of the batch's size."""
    return any(word in str(error) for word in ("onstrain", "specialized", "pecialization", "inconsistencies"))


def _untraceable(model: nn.Module, batch: Batch, error: Exception, fixing: Sequence[str]) -> ModelError:
    """Say where in the user's code torch.export gave up, and why. `fixing`: lines that make the size a plain number."""
    place = place_of_error(model, error)
    text = re.sub(r"\bs\d+\b", "N", str(error).strip())  # symbols of sizes
    if isinstance(error, CannotFollowError | NotImplementedError):  # the latter by a ModuleRule's forward
        return ModelError(f"the model cannot be traced{place}: {error}")
    if "data-dependent" in text or "DataDependent" in type(error).__name__:
        rows = ".item()" not in place and re.search(r"\bu\d+\b", text)  # a size that values decide
        return ModelError(f"the model cannot be traced{place}: {PICKED if rows else CONTROL}")
    if _fixes_size(error):
        lines = sorted({line for line in fixing if line})
        return ModelError(listing(
            "the model cannot be traced, because its code fixes the batch's size, and a program serves every size"
            + (":" if lines else ""), lines,
            "Compute on the whole batch, without a loop over samples or a literal size; x.shape[0], len(x), x.numel() "
            f"work as they are. {OF_SIZES}"))
    if complaint := of_constants(text, place):
        return ModelError(f"the model cannot be traced{complaint}")
    reason = f"{type(error).__name__}: {text.splitlines()[0][:300] if text else ''}"
    return ModelError(f"the model cannot be traced{place}, though it runs on the batch itself (torch's trace takes "
                      f"another batch size, N, and tensors without values): {reason}{of_trace(reason, batch)}")

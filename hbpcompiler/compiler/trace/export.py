"""Stage 1, first half: model and loss through torch.export, and what went wrong in the user's terms."""

from __future__ import annotations

import io
import keyword
import linecache
import logging
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from typing import Any

import torch
from torch import Tensor, nn
from torch.export.graph_signature import InputKind
from torch.fx import graph as fx_graph

from hbpcompiler.compiler.trace.batch import Batch
from hbpcompiler.compiler.trace.containers import StrangerError, Structure, take_apart
from hbpcompiler.compiler.trace.equivalents import (
    module_equivalents,
    plain_ways,
    right_shapes,
    unchecked_distributions,
)
from hbpcompiler.compiler.trace.lengths import symbolic_lengths
from hbpcompiler.compiler.trace.sizes import sizes_of
from hbpcompiler.compiler.trace.source import LIBRARY, source_of
from hbpcompiler.compiler.trace.values import Answers, told_again
from hbpcompiler.errors import BatchDoesNotFitError, ModelError, UnsupportedOpError, listing
from hbpcompiler.rule import ModuleRule

TRACED_BATCH = 7
"""torch.export specialises a batch of one, and a prime is unlikely to equal another length of the model."""
_NOISY = ("torch.fx.experimental.symbolic_shapes", "torch._subclasses.fake_tensor", "torch.export", "torch._export")
"""Loggers that print pages before an error that we turn into one sentence."""


class _Loss(nn.Module):
    """Makes a loss, module or plain function, recognisable in the traced graph."""

    def __init__(self, loss: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = loss

    def forward(self, output: Any, target: Any) -> Any:
        return self.function(output, target)


class _Whole(nn.Module):
    """Model and loss as one module, so that one graph holds both: of a batch's tensors, the loss and all outputs."""

    def __init__(self, model: nn.Module, loss: Callable[..., Tensor], arguments: Callable[[Sequence[Tensor]], Any],
                 returned: Callable[[Structure], None], answers: Answers) -> None:
        super().__init__()
        self.model = model
        self.loss = _Loss(loss)
        # Functions, because torch.export copies attributes and puts them back as they were.
        self.arguments, self.returned = arguments, returned
        self.answers = answers

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        with told_again(self.answers, __file__), symbolic_lengths(), plain_ways(), unchecked_distributions():
            return self._run(tensors)

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
            what = f"a tensor of shape {_shown(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise ModelError(
                f"the loss must return one number (a tensor without axes), but returned {what}; "
                "use reduction='mean' or 'sum'"
            )
        return loss, *outputs


def _shown(shape: Sequence[Any]) -> str:
    return "[" + ", ".join(str(length) if isinstance(length, int) else "N" for length in shape) + "]"


def export(model: nn.Module, loss: Callable[..., Tensor], batch: Batch,
           modules: Mapping[type[nn.Module], ModuleRule] | None = None,
           answers: Answers | None = None, samples: int = TRACED_BATCH) -> tuple[Any, Structure]:
    """The ExportedProgram of the batch's tensors -> (loss, *outputs), functional, composites kept whole; and how the
    model's output is built of `outputs`.

    `modules` are traced through their rules' forward; `answers` are what Python code made of tensors' values in a run;
    `samples` is the size of the batch that Python code meets, of which the program holds the conditions (see `sizes`).
    Raises ModelError where torch.export cannot follow the model, naming module and line.
    """
    few = batch.rows(samples)
    dynamic = ({0: torch.export.Dim.DYNAMIC},) * len(few)
    returned: list[Structure] = []
    layout = batch.layout
    whole = _Whole(model, loss, lambda tensors: layout.build(tensors), lambda structure: returned.append(structure),
                   answers or {})
    whole.training = model.training  # not train(): that would reach into the user's modules
    with warnings.catch_warnings(), _quiet(), quoted_names(), right_shapes(), \
            module_equivalents(model, modules or {}):
        warnings.simplefilter("ignore")
        try:
            program = torch.export.export(whole, few, dynamic_shapes=(dynamic,), strict=False)
            _check_gradients_stay_on(program)
            _check_any_size(program)
            return program.run_decompositions({}), returned[-1]
        except (ModelError, UnsupportedOpError):
            raise
        except Exception as error:
            raise _untraceable(model, error) from error


def _check_gradients_stay_on(program: Any) -> None:
    """torch.no_grad() inside a model would vanish from the graph and its values be differentiated: refuse it.

    Where no trainable parameter comes in (rotary embeddings of positions) it changes nothing.
    """
    trained = _trained(program)
    found = [node for node in program.graph.nodes if node.op == "call_function" and node.args
             and "set_grad_enabled" in str(node.target) and node.args[0] is False
             and trained.intersection(node.all_input_nodes)]
    if found:
        places = [str(source_of(inner)) for node in found for inner in _nodes_of(program, node)][:5]
        raise ModelError(listing("torch.no_grad() inside the model or the loss is not supported; use x.detach():",
                                 sorted(set(places))))


def _check_any_size(program: Any) -> None:
    """torch.export may fix a number such as 1 / x.shape[0] to its value at TRACED_BATCH."""
    if found := sizes_of(program).fixing():
        raise ModelError(listing("The model cannot be traced: its code fixes the batch's size, and a program serves "
                                 "others too; write it for any:", found))


def _trained(program: Any) -> set[torch.fx.Node]:
    """What depends on a trainable parameter by way of real or complex tensors."""
    specs = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
    found: set[torch.fx.Node] = set()
    for node in program.graph.nodes:
        value = node.meta.get("val")
        if node.op == "placeholder":
            spec = specs[node.name]
            trained = spec.kind is InputKind.PARAMETER and program.state_dict[spec.target].requires_grad
        else:
            exact = isinstance(value, Tensor) and not (value.is_floating_point() or value.is_complex())
            trained = bool(found.intersection(node.all_input_nodes)) and not exact
        if trained:
            found.add(node)
    return found


def _nodes_of(program: Any, call: torch.fx.Node) -> list[torch.fx.Node]:
    """The operations of the block that a higher-order call runs; the call itself if they cannot be seen."""
    for argument in call.args:
        if isinstance(argument, torch.fx.Node) and argument.op == "get_attr":
            block = getattr(program.graph_module, str(argument.target), None)
            if isinstance(block, torch.fx.GraphModule):
                return [node for node in block.graph.nodes if node.op == "call_function"]
    return [call]


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


@contextmanager
def _quiet() -> Iterator[None]:
    levels = {name: logging.getLogger(name).level for name in _NOISY}
    for name in _NOISY:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    printed = io.StringIO()
    try:
        with redirect_stderr(printed):
            yield
        sys.stderr.write(printed.getvalue())  # without an error it is the user's
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def _untraceable(model: nn.Module, error: Exception) -> ModelError:
    """Say where in the user's code torch.export gave up, and why."""
    place = _place(model, error)
    text = str(error).strip()
    if "data-dependent" in text or "DataDependent" in type(error).__name__:
        return ModelError(
            f"the model cannot be traced{place}: control flow depends on the values of tensors, which a compiled "
            "program cannot follow; use torch.where, or compute the branch outside the model"
        )
    if "onstrain" in text or "specialized" in text or "pecialization" in text:
        return ModelError(
            f"the model cannot be traced{place}: the code fixes the batch size (a literal in view or reshape, a loop "
            "over samples); write it for any batch size"
        )
    reason = f"{type(error).__name__}: {text.splitlines()[0][:300] if text else ''}"
    if type(error) in (RuntimeError, ValueError, IndexError, TypeError, AssertionError):
        return BatchDoesNotFitError(f"the batch does not go through the model{place}: {reason}")
    return ModelError(f"the model cannot be traced{place}: {reason}")


def _place(model: nn.Module, error: BaseException) -> str:
    """The innermost module on the error's stack, and the innermost line of the user's own."""
    paths = {id(module): path for path, module in model.named_modules()}
    module, line = "", ""
    for frame, number in traceback.walk_tb(error.__traceback__):
        code = frame.f_code
        owner = frame.f_locals.get(code.co_varnames[0]) if code.co_argcount else None
        if isinstance(owner, nn.Module) and id(owner) in paths:
            module = f" at module {paths[id(owner)]!r} ({type(owner).__name__})"
            if not code.co_filename.startswith(LIBRARY):
                source = linecache.getline(code.co_filename, number).strip()
                line = f", {code.co_filename}:{number}: {source}"
    return module + line

"""Where to look when a program and its model disagree: what in the user's code a graph of operations does not show."""

from __future__ import annotations

import inspect
import sys
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction
from torch.nn.modules import module as torch_module
from torch.utils import _pytree as pytree

from hbpcompiler.compiler.match.matched import Matched
from hbpcompiler.compiler.prove.candidate import Candidate
from hbpcompiler.compiler.prove.draws import Draws, drawing
from hbpcompiler.compiler.prove.own_backward import custom_nodes
from hbpcompiler.compiler.prove.own_step import copied_buffers, forward, unchanged
from hbpcompiler.compiler.trace.batch import Batch
from hbpcompiler.compiler.trace.refusals.listed import held_elsewhere
from hbpcompiler.compiler.trace.source.custom_functions import STRAIGHT
from hbpcompiler.compiler.trace.source.source import FRAME, LIBRARY
from hbpcompiler.compiler.trace.with_state import ordinary_mode
from hbpcompiler.rule.registry import Registry
from hbpcompiler.system.modes import FunctionMode
from hbpcompiler.system.threads import function_modes

_BACKWARD_HOOKS = ("_backward_hooks", "_backward_pre_hooks")
_GLOBAL_HOOKS = ("_global_backward_hooks", "_global_backward_pre_hooks")
_NOT_THE_USERS = (*LIBRARY, str(Path(__file__).parent))
_FUNCTIONS = inspect.getsourcefile(BackwardCFunction)
_WRITES = frozenset({"__setitem__", *(f"__i{name}__" for name in ("add", "sub", "mul", "truediv", "pow", "floordiv"))})
TIMES = ("; for one that multiplies the derivative by c (to reverse it, c = -1) c * x - ((c - 1) * x).detach(); for "
         "others write what they do as operations")
IN_OPERATIONS = "write what it does to the derivative as operations: for a factor c, c * h - ((c - 1) * h).detach()"


def suspects(candidate: Candidate, batch: Batch, draws: Draws, of: Collection[str] = ()) -> list[str]:
    """A sentence for each, with its place and what to write instead; `of`: the parameters whose numbers disagree. Runs
    the model's forward once more."""
    model, loss, matched, registry = candidate.model, candidate.loss, candidate.matched, candidate.options.registry
    found = [*held_elsewhere(model, candidate.state, of), *_modes(), *hooks(model, loss), *_ended(matched),
             *_rules_of_others(matched, registry), *_module_rules_of_others(model, registry)]
    watcher = _Watcher(model)
    with warnings.catch_warnings(), unchanged(model, loss), drawing(draws), ordinary_mode():
        warnings.simplefilter("ignore")
        try:
            with torch.autograd.set_detect_anomaly(True), watcher:
                value = forward(model, loss, batch, copied_buffers(model), lambda run: run.loss)
        except Exception:  # it went through without being watched; what is known so far must do
            return [*found, *watcher.found]
    return [*found, *watcher.found, *_custom_functions(value, watcher.modules)]


def hooks(model: nn.Module, loss: Any = None) -> list[str]:
    """Hooks that may change a gradient, which no program runs."""
    found = []
    for title, root in (("module", model), ("the loss's module", loss)):
        for path, module in root.named_modules() if isinstance(root, nn.Module) else ():
            for kind in _BACKWARD_HOOKS:
                found += [f"{_described(hook)}, a backward hook of {title} {path!r} ({type(module).__name__}): "
                          f"{IN_OPERATIONS}" for hook in getattr(module, kind).values()]
    for kind in _GLOBAL_HOOKS:
        found += [f"{_described(hook)}, a backward hook of all modules (register_module_full_backward_hook): "
                  "remove it" for hook in getattr(torch_module, kind).values()]
    for name, parameter in model.named_parameters():
        own: Mapping[int, Callable[..., Any]] = parameter._backward_hooks or {}
        found += [f"{_described(hook)}, a hook of parameter {name!r}: remove it, and change the result's gradient "
                  "instead" for hook in own.values()]
    return found


def _modes() -> list[str]:
    return [f"{kind.__qualname__}, a TorchFunctionMode in force, changes what the program's operations give, too: call "
            "outside of it, or write what it does into the model" for kind in function_modes()]


def _described(hook: Any) -> str:
    """Its name and where it was written."""
    written = inspect.unwrap(hook)
    code = getattr(written, "__code__", None) or getattr(getattr(written, "__func__", None), "__code__", None)
    name = getattr(written, "__qualname__", type(written).__name__).replace("<locals>.", "")
    return f"{name}{f' ({code.co_filename}:{code.co_firstlineno})' if code else ''}"


def _ended(matched: Matched) -> list[str]:
    """Operations at which derivatives end because they make numbers of another kind, which then reach the loss."""
    graph = matched.graph
    below = {value.name for value in graph.state if value.trainable}
    above, readers = {graph.loss.name}, list(graph.operations)
    for operation in reversed(readers):
        if operation.name in above:
            above.update(value.name for value in operation.tensors.values())
    found = []
    for operation in graph.operations:
        differentiable = [value for value in operation.tensors.values() if value.name in below and value.floating]
        if operation.output.floating and differentiable:
            below.add(operation.name)
        elif differentiable and operation.name in above and operation.output.dtype is not torch.bool:
            found.append(f"{operation.target} in {operation.source}: the derivative ends here, at numbers of "
                         f"{operation.output.dtype}; if it should not, keep them real and floating-point")
    return found


def _rules_of_others(matched: Matched, registry: Registry) -> list[str]:
    """Rules of the user's, or of a package's, that take part."""
    found: dict[str, str] = {}
    for operation in matched.graph.operations:
        file = registry.file_of_others(operation.target, operation.overload)
        if file is not None:
            place = f"the rule for {operation.target} in {file}, used in {operation.source}"
            found.setdefault(operation.target, f"{place}: hbpcompiler.testing.check_rule compares it with autograd")
        whole = operation.source.whole
        file = registry.file_of_others(whole, "") if registry.decomposition(whole, "") is not None else None
        if file is not None:
            found.setdefault(whole, f"the decomposition of {whole} in {file}, used in {operation.source}: compare what "
                                    "its function returns with the operation")
    return [*found.values()]


def _module_rules_of_others(model: nn.Module, registry: Registry) -> list[str]:
    """Modules that were traced through a rule of the user's."""
    found: dict[str, str] = {}
    for path, module in model.named_modules():
        file = registry.file_of_module(type(module))
        if file is not None and "forward" not in module.__dict__:
            found.setdefault(file + type(module).__name__, (
                f"the rule for {type(module).__name__} in {file}, through whose forward module {path!r} was traced: "
                "compare it with the module's own forward"))
    return [*found.values()]


def _custom_functions(value: Tensor, modules: Mapping[tuple[str, int], str]) -> Iterator[str]:
    """The autograd.Functions of the user's own above a value."""
    seen: set[str] = set()
    for node in custom_nodes(value):
        own = node._forward_cls
        trace = "".join(node.metadata.get("traceback_", []))
        frames = [match for match in FRAME.finditer(trace) if not match["file"].startswith(_NOT_THE_USERS)]
        place = ""
        if frames:
            file, line = frames[-1]["file"], int(frames[-1]["line"])
            module = modules.get((file, line), "the model")
            place = f", called in {module}, {file}:{line}: {frames[-1]['code'].strip()}"
        name = own.__qualname__.replace("<locals>.", "")
        text = f"custom autograd.Function {name}{_line_of(own)}{place}: {STRAIGHT.format(name=own.__name__)}{TIMES}"
        if text not in seen:
            seen.add(text)
            yield text


def _line_of(own: type) -> str:
    try:
        return f" ({inspect.getsourcefile(own)}:{inspect.getsourcelines(own)[1]})"
    except (OSError, TypeError):
        return ""


class _Watcher(FunctionMode):
    """Sees hooks of tensors as they are registered, blocks that turn gradients off for what is trained, writes into it
    that its derivative does not know of, and where in the model each line of the user's runs."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.paths = {id(module): path for path, module in model.named_modules()}
        self.found: list[str] = []
        self.modules: dict[tuple[str, int], str] = {}
        self.trained: dict[int, Tensor] = {}
        """Values with a derivative, by their memory."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        place, given = self._place(sys._getframe(1))
        if func is Tensor.register_hook:
            self._note(f"{_described(args[1])}, a hook of a tensor, registered in {place}: {IN_OPERATIONS}")
        elif given is not None and any(_memory(item) not in given for item in pytree.tree_leaves(args)
                                       if _is_trained(item)):
            self._note("a custom autograd.Function reads something trained that apply() was not given, to which no "
                       f"derivative goes, in {place}: pass it to apply(), or write .detach() behind it")
        elif not (torch.is_grad_enabled() or given is not None) and any(map(_is_trained, args)):
            block = "torch.inference_mode()" if torch.is_inference_mode_enabled() else "torch.no_grad()"
            self._note(f"{block}, used in {place}: write x.detach() for what has no derivative")
        elif any(_memory(item) in self.trained for item in _written(func, args, kwargs or {})):
            self._note("a value with a derivative is changed in place through .detach() or .data, whose derivative "
                       f"stays that of what it was, in {place}: write h = h + (changed - h).detach() for this, or "
                       "h = changed for the derivative of what h becomes")
        result = func(*args, **(kwargs or {}))
        self.trained |= {_memory(item): item for item in pytree.tree_leaves(result) if _is_trained(item)}
        return result

    def _note(self, text: str) -> None:
        if text not in self.found:
            self.found.append(text)

    def _place(self, frame: FrameType | None) -> tuple[str, set[int] | None]:
        """The innermost module and the innermost line of the user's own; inside a custom function the memory of the
        tensors that it was given, else None."""
        lines: list[tuple[str, int]] = []
        module = ""
        given: set[int] | None = None
        while frame is not None and frame.f_code is not forward.__code__:
            code = frame.f_code
            if code.co_name == "apply" and code.co_filename == _FUNCTIONS:
                leaves = pytree.tree_leaves(frame.f_locals.get("args", ()))
                given = {_memory(item) for item in leaves if isinstance(item, Tensor)}
            if not code.co_filename.startswith(_NOT_THE_USERS):
                lines.append((code.co_filename, frame.f_lineno))
            owner = frame.f_locals.get(code.co_varnames[0]) if code.co_argcount else None
            if not module and isinstance(owner, nn.Module) and id(owner) in self.paths:
                path = self.paths[id(owner)]
                module = f"module {path!r} ({type(owner).__name__})" if path else f"{type(owner).__name__}'s forward"
                self.modules.update(dict.fromkeys(lines, module))
            frame = frame.f_back
        module = module or "the loss"
        self.modules.update((line, module) for line in lines if line not in self.modules)
        return module + (f", {lines[0][0]}:{lines[0][1]}" if lines else ""), given


def _written(func: Any, args: Any, kwargs: Mapping[str, Any]) -> list[Tensor]:
    """The tensors without gradient that a function of torch's writes into, as far as its name or `out=` tells."""
    name = getattr(func, "__name__", "")
    in_place = name in _WRITES or (name.endswith("_") and not name.endswith("__"))
    items = pytree.tree_leaves((args[:1] if in_place else (), kwargs.get("out")))
    return [item for item in items if isinstance(item, Tensor) and not item.requires_grad]


def _memory(tensor: Tensor) -> int:
    """Equal for tensors that show the same."""
    return int(tensor.untyped_storage()._cdata)


def _is_trained(item: Any) -> bool:
    return isinstance(item, Tensor) and item.requires_grad

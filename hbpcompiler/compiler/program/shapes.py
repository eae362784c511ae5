"""Symbolic shapes of everything the program computes: runs on meta tensors, with two batch sizes.

A loop's body has its own chunk's length beside those of what is around it. So it is run once for each of these lengths,
with that one alone raised: what is as long as the chunk around it is told from what has that many numbers anyway.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from hbpcompiler.arguments import ARGUMENTS, Sizes
from hbpcompiler.compiler.program import meta
from hbpcompiler.compiler.program.alike_calls import EVERYWHERE, AlikeCalls, storage_of, tensors_in
from hbpcompiler.compiler.program.nodes import is_pointwise, returns_its_input
from hbpcompiler.compiler.program.writer import Loop
from hbpcompiler.compiler.trace.graph import N, Value
from hbpcompiler.errors import UnsupportedOpError

BATCHES = (5, 8)


def annotate(graph: fx.Graph, arguments: Callable[..., Sequence[Any]]) -> None:
    """Say of every node what it makes (see `meta`): the shape of a tensor is a tuple of texts such as "N" or "9".

    `arguments` gives a meta tensor for each of the program's arguments, for a batch of so many samples and so many
    vectors, F, that a call brings; where it brings some.
    """
    few, many = BATCHES
    given, symbols = [arguments(few), arguments(many)], ["N"]
    if any(meta.sizes(node) for node in graph.nodes if node.op == "placeholder"):
        given.append(arguments(few, many))
        symbols.append("F")
    _annotate(graph, given, symbols, AlikeCalls(EVERYWHERE))


def arguments(graph: fx.Graph, inputs: Mapping[str, Value], state: Sequence[Value],
              batch: int = BATCHES[0], vectors: int = BATCHES[0]) -> list[Any]:
    """A meta tensor for each of the program's arguments."""
    values: dict[str, Any] = {name: _meta(value, batch) for name, value in inputs.items()}
    values["state"] = {value.key: _meta(value, batch) for value in state}
    beside = stand_ins(graph, batch, values["state"], vectors)
    return [beside[name] if (name := meta.argument(node)) else values[str(node.target)]
            for node in graph.nodes if node.op == "placeholder"]


def stand_ins(graph: fx.Graph, batch: int, state: Mapping[str, Tensor],
              vectors: int = BATCHES[0]) -> dict[str, Any]:
    """What stands for a program's call arguments, by name, where it runs without a call."""
    return {name: ARGUMENTS[name].stand_in(batch, state, sizes, vectors) for name, sizes in asked(graph).items()}


def asked(graph: fx.Graph) -> dict[str, Sizes]:
    """The call arguments of a program, and what it asks of those that are dicts of tensors."""
    return {meta.argument(node): meta.sizes(node) for node in graph.nodes
            if node.op == "placeholder" and meta.argument(node)}


def _meta(value: Value, batch: int) -> Tensor:
    shape = [length if isinstance(length, int) else int(length.subs(N, batch)) for length in value.shape]
    return torch.empty(shape, dtype=value.dtype, device="meta")


Enter = Callable[[Loop, Sequence[Tensor], Sequence[Tensor], Sequence[Tensor]], None]
"""What is done at a loop, with its accumulators, what it cuts and what it reads whole."""


def _run(graph: fx.Graph, arguments: Sequence[Any], enter: Enter, alike: AlikeCalls) -> dict[fx.Node, Any]:
    """Every node's value on meta tensors; those in loops' bodies are what `enter` makes of them."""
    return dict(interpret(graph, arguments, enter, lambda node, values: _shaped(node, values, alike)))


def _shaped(node: fx.Node, values: Mapping[fx.Node, Any], alike: AlikeCalls) -> Any:
    """What a node makes, as far as shapes go: what writes into its first argument returns that."""
    total = node.args[0] if node.args else None
    if isinstance(total, fx.Node) and returns_its_input(node):
        return values[total]
    args, kwargs = given_to(node, values)
    return alike.result((node.op, node.target), args, kwargs, lambda: called(node, args, kwargs), is_pointwise(node))


def interpret(graph: fx.Graph, arguments: Sequence[Any], enter: Enter,
              made: Callable[[fx.Node, Mapping[fx.Node, Any]], Any] | None = None) -> Iterator[tuple[fx.Node, Any]]:
    """Each node with its value on meta tensors; at a loop, `enter(loop, accumulators, cut, whole)` is called instead.

    A value is kept no longer than to its last reader. `made` says what a node makes; None: `evaluate`, it is run.
    """
    made = made or evaluate
    values: dict[fx.Node, Any] = {}
    given = iter(arguments)
    last = {used: node for node in graph.nodes for used in node.all_input_nodes}
    for node in graph.nodes:
        if node.op == "output":
            continue
        if node.op == "placeholder":
            values[node] = next(given)
            yield node, values[node]
            continue
        if isinstance(node.target, Loop):
            args = fx.node.map_arg(node.args, lambda used: values[used])
            enter(node.target, *args)
            values[node] = args[0]
            del args
        else:
            values[node] = made(node, values)
        yield node, values[node]
        for used in {node, *node.all_input_nodes}:
            if last.get(used, node) is node:
                del values[used]


def evaluate(node: fx.Node, values: Mapping[fx.Node, Any]) -> Any:
    """What a node, no loop, makes of meta tensors."""
    return called(node, *given_to(node, values))


def given_to(node: fx.Node, values: Mapping[fx.Node, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A node's arguments, of the values of those that it reads."""
    args: Any = fx.node.map_arg(node.args, lambda used: values[used])
    kwargs: Any = dict(fx.node.map_arg(node.kwargs, lambda used: values[used]))
    if kwargs.get("device") is not None:
        kwargs["device"] = "meta"
    return args, kwargs


def called(node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What a node makes of these arguments."""
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    assert callable(node.target)
    try:
        return node.target(*args, **kwargs)
    except NotImplementedError:
        raise UnsupportedOpError(f"{node.target} has no kernel in torch that tells the shape of its result, which a "
                                 "program is planned by: compute it outside of model and loss, and hand it over as an "
                                 "input or with the target") from None


def _annotate(graph: fx.Graph, given: Sequence[Sequence[Any]], symbols: Sequence[str], alike: AlikeCalls) -> None:
    """Of a graph and the bodies of its loops. The first of `given` has all lengths at the lower of two sizes, each of
    the others has one of them, that of the symbol at its place, at the higher."""
    calls: dict[Loop, list[Any]] = {}
    known: dict[Hashable, tuple[dict[fx.Node, Any], list[Any]]] = {}
    runs = []
    for arguments in given:
        sizes = _sizes(arguments)
        if sizes not in known:  # most loops' bodies see a batch of any size in the same chunks
            entered: list[Any] = []
            run = _run(graph, arguments, lambda loop, *passed: entered.append((loop, passed)), alike)
            known[sizes] = run, entered
        run, inside = known[sizes]
        runs.append(run)
        for loop, passed in inside:
            calls.setdefault(loop, []).append(passed)
    for loop, passed in calls.items():
        few, many = BATCHES
        rounds = [round_of(loop, accumulators, cut, whole, few) for accumulators, cut, whole in passed]
        accumulators, cut, whole = passed[0]
        raised = round_of(loop, accumulators, cut, whole, many)
        _annotate(loop.body, [*rounds, raised], _symbols(symbols, loop), alike)
    _mark(graph, runs, symbols)


def _sizes(item: Any) -> Hashable:
    """Equal for arguments that programs make tensors of equal shapes of."""
    if isinstance(item, Tensor):
        return item.shape, item.stride()
    if isinstance(item, Mapping):
        return tuple((key, _sizes(part)) for key, part in item.items())
    if isinstance(item, list | tuple):
        return tuple(map(_sizes, item))
    return item  # a number


def _symbols(around: Sequence[str], loop: Loop) -> list[str]:
    """Those of a loop's body: its own is the last."""
    own = loop.letter
    return [*(f"outer {symbol}" if symbol.endswith(own) else symbol for symbol in around), own]


def round_of(loop: Loop, accumulators: Sequence[Tensor], cut: Sequence[Tensor], whole: Sequence[Tensor],
             length: int = BATCHES[0]) -> list[Tensor]:
    """What the body is given for a chunk of this length; one for single samples may rely on their number."""
    length = length if loop.chunk > 1 else 1
    return loop.turn(accumulators, cut, whole, lambda tensor, axis: resized(tensor, axis, length))


def resized(tensor: Tensor, axis: int, length: int) -> Tensor:
    shape = list(tensor.shape)
    shape[axis] = length
    return torch.empty(shape, dtype=tensor.dtype, device="meta")


def _mark(graph: fx.Graph, runs: Sequence[Mapping[fx.Node, Any]], symbols: Sequence[str]) -> None:
    first, *others = runs
    for node in graph.nodes:
        if node.op == "output":
            continue
        value = first[node]
        if isinstance(value, Tensor):
            lengths = zip(value.shape, *(run[node].shape for run in others), strict=True)
            meta.set_tensor(node, tuple(_length(low, high, symbols) for low, *high in lengths), value.dtype)
        elif isinstance(value, tuple) and any(isinstance(part, Tensor) for part in value):
            meta.set_results(node, len(value))
        else:
            meta.set_no_tensor(node)
        if node.op != "placeholder":
            meta.set_own_memory(node, _is_of_its_own(value, [first[read] for read in node.all_input_nodes]))


def _is_of_its_own(value: Any, given: Sequence[Any]) -> bool:
    """Whether a result lies in new memory, with one place for each number."""
    known = set(map(storage_of, tensors_in(given)))
    made = tensors_in(value)
    return not any(storage_of(tensor) in known or torch._debug_has_internal_overlap(tensor) == 1 for tensor in made)


def _length(low: int, high: Sequence[int], symbols: Sequence[str]) -> str:
    """A length: a number, a multiple of some symbols, or a sum of multiples of them, from its samples."""
    few, many = BATCHES
    grown = [(symbol, length) for symbol, length in zip(symbols, high, strict=True) if length != low]
    if not grown:
        return str(low)
    factor, rest = divmod(low, few ** len(grown))
    if rest == 0 and factor and all(length * few == low * many for _, length in grown):
        names = "*".join(symbol for symbol, _ in grown)
        return names if factor == 1 else f"{factor}*{names}"
    slopes = [(symbol, (length - low) // (many - few)) for symbol, length in grown]
    constant = low - few * sum(slope for _, slope in slopes)
    parts = [symbol if slope == 1 else f"{slope}*{symbol}" for symbol, slope in slopes]
    return " + ".join(parts + [str(constant)] * (constant != 0))

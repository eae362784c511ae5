"""The helper functions that a generated file defines, because its program calls them."""

from __future__ import annotations

import inspect
import re
import textwrap
import types
from collections.abc import Iterator
from typing import Any

from torch import fx

from hbpcompiler.codegen.naming import Names, comment
from hbpcompiler.codegen.printer import ATOM, Text, expression
from hbpcompiler.compiler.program.kernels import FALLBACKS, composites
from hbpcompiler.compiler.program.weighted_loss import WeightedLoss
from hbpcompiler.compiler.program.writer import Loop
from hbpcompiler.rule.composite import Composite, EachSample

SLICE = re.compile(r"(?<=\w) : (?=\w+( \+ \w+)?[\],])")
"""The colon of x[first : first + 8], which programs write without spaces."""
WITHOUT_ONEDNN = """\
WITHOUT_ONEDNN = not torch.backends.mkldnn.is_available() or torch.cpu.get_capabilities().get("amx_tile", False)
# On processors with AMX, Intel's since 2023, BLAS is as fast or faster."""
LONGEST_INSIDE = 60
"""A longer call inside a composite gets a line of its own."""


def definitions(graph: fx.Graph) -> list[str]:
    """The text of each helper that the graph calls, and of those that these call."""
    wanted = dict.fromkeys(_called(graph))
    for own in composites(graph).values():
        wanted |= dict.fromkeys(_called(own.losses.graph if isinstance(own, WeightedLoss) else own.graph))
    for helper in list(wanted):
        wanted |= dict.fromkeys(_needs(helper))
    texts: list[str] = []
    for helper, instead in FALLBACKS.items():
        if helper in wanted and instead:
            texts += [] if WITHOUT_ONEDNN in texts else [WITHOUT_ONEDNN]
            texts.append(_one_of_two(helper, instead))
        elif helper in wanted:
            texts.append(_source(helper))
    for own in composites(graph).values():
        if isinstance(own, WeightedLoss):
            texts.append(_weighted(own, own.losses.name in composites(graph)))
        else:
            texts.append(_each(own) if isinstance(own, EachSample) else _composite(own))
    return texts


def _one_of_two(helper: Any, instead: str) -> str:
    """Its definition where oneDNN gains something, and what has its name elsewhere: it takes the same arguments."""
    own = _source(helper)
    other = f"    {helper.__name__} = {instead}"
    if "(" in instead:
        head = own[:own.index(") -> Tensor:\n")] + ") -> Tensor:"
        other = "\n" + textwrap.indent(f"{head}\n    return {instead}\n", "    ")
    return f"if WITHOUT_ONEDNN:\n{other}\nelse:\n\n{textwrap.indent(own, '    ')}"


def _composite(function: Composite) -> str:
    """Its definition: a line for each call that is read more than once, and the result."""
    arguments, lines, result = _lines(function.graph, Names())
    about = [f'    """{comment(function.about)}"""'] if function.about else []
    head = f"def {function.name}({', '.join(f'{name}: Tensor' for name in arguments)}) -> Tensor:"
    return "\n".join([head, *about, *(f"    {line}" for line in lines), f"    return {result}"])


def _lines(graph: fx.Graph, names: Names) -> tuple[list[str], list[str], str]:
    """(names of the arguments, a line for each call that is read more than once, the result)."""
    texts, lines, arguments, result = dict[fx.Node, Text](), list[str](), list[str](), ""
    for node in graph.nodes:
        if node.op == "placeholder":
            texts[node] = (names.fresh(node.name), ATOM)
            arguments.append(texts[node][0])
        elif node.op == "output":
            result = texts[node.args[0]][0]
        else:
            text = expression(node, texts.__getitem__)
            last = [user.op for user in node.users] == ["output"]
            short = last or (len(node.users) == 1 and len(text[0]) <= LONGEST_INSIDE)
            texts[node] = text if short else (names.fresh(node.name), ATOM)
            lines += [] if short else [f"{texts[node][0]} = {text[0]}"]
    return arguments, lines, result


def _weighted(function: WeightedLoss, losses_defined: bool) -> str:
    """Its definition, in terms of the losses where these are a function of the file's own."""
    names = Names()
    names.taken.update(["loss", "each", "w"])
    given, lines, result = _lines(function.losses.graph, names)
    if losses_defined:
        lines, result = [], f"{function.losses.name}({', '.join(given)})"
    typed = ["loss: Tensor", "w: Optional[Tensor]", *(f"{name}: Tensor" for name in given)]
    return "\n".join([
        f"def {function.name}({', '.join(typed)}) -> Tensor:",
        f'    """{function.about}"""',
        "    if w is None:",
        "        return loss",
        *(f"    {line}" for line in lines),
        f"    each = {result}",
        f"    return torch.where((w == 1).all(), loss, (each * w.type_as(each)).{function.kind}().type_as(loss))",
    ])


def _each(function: EachSample) -> str:
    """Its definition in terms of the function that it takes sample by sample."""
    names = [node.name for node in function.graph.nodes if node.op == "placeholder"]
    typed, whole = ", ".join(f"{name}: Tensor" for name in names), function.whole
    given = [f"{name}.unsqueeze(0)" if batched else name for name, batched in zip(names, whole.batched, strict=True)]
    result = f"{whole.name}({', '.join(given)}){'.squeeze(0)' * whole.of_samples}"
    own = [name for name, batched in zip(names, function.batched, strict=True) if batched]
    empty = f"torch.zeros({[0, *function.shape]}, dtype={function.dtype}, device={own[0]}.device)"
    if function.one_by_one:
        each = [f"{name}[n]" if name in own else name for name in names]
        mapped = f"torch.stack([of_one({', '.join(each)}) for n in range({own[0]}.shape[0])])"
    else:
        axes = ", ".join("0" if name in own else "None" for name in names)
        mapped = f"torch.func.vmap(of_one, ({axes},))({', '.join(names)})"
    return "\n".join([
        f"def {function.name}({typed}) -> Tensor:",
        f'    """{whole.name} sample by sample, with {" and ".join(own)} of each sample\'s own."""',
        f"    def of_one({typed}) -> Tensor:",
        f"        return {result}",
        "",
        f"    if {own[0]}.shape[0] == 0:",
        f"        return {empty}",
        f"    return {mapped}",
    ])


def _source(helper: Any) -> str:
    """Its definition, without what concerns this package alone."""
    text = re.sub(r"^@idiom.*\n", "", inspect.getsource(helper))
    text = re.sub(r"  # (noqa|type): .*", "", text).rstrip()
    return SLICE.sub(":", text)


def _needs(helper: Any) -> Iterator[Any]:
    """Other helpers that it calls."""
    names = set(_read(inspect.unwrap(helper).__code__))
    for other in FALLBACKS:
        if other.__name__ in names:
            yield other
            yield from _needs(other)


def _read(code: types.CodeType) -> Iterator[str]:
    """The global names that a function and those inside it read."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _read(constant)


def _called(graph: fx.Graph) -> Iterator[Any]:
    for node in graph.nodes:
        if isinstance(node.target, Loop):
            yield from _called(node.target.body)
        elif node.target in FALLBACKS:
            yield node.target

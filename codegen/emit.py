"""Stage 6, emit: the optimised graph as one readable file of straight-line Python."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import jinja2
from torch import fx

from hbpcompiler.arguments import ARGUMENTS
from hbpcompiler.codegen.calls import Outline
from hbpcompiler.codegen.conditions import conditions
from hbpcompiler.codegen.definitions import definitions
from hbpcompiler.codegen.functions import Functions
from hbpcompiler.codegen.layout import laid_out
from hbpcompiler.codegen.legend import legend
from hbpcompiler.codegen.lifetimes import Section, free_at_last_use, tell_once
from hbpcompiler.codegen.made_once import made_once
from hbpcompiler.codegen.modules import shared_by_modules
from hbpcompiler.codegen.naming import Names, comment
from hbpcompiler.codegen.outline import outlined
from hbpcompiler.codegen.places import (
    ENDS,
    ENDS_CLASS,
    PARAMETERS,
    SAVED,
    SHARED,
    Listed,
    Place,
    ends_at_parameters,
    is_large,
    lengths,
    places,
    relaid,
)
from hbpcompiler.codegen.printer import Text, quote
from hbpcompiler.codegen.roles import where_in
from hbpcompiler.codegen.statements import Printer
from hbpcompiler.codegen.tables import can_be_tables, merged, parameter_table, record_text, result_tables
from hbpcompiler.compiler.program import meta
from hbpcompiler.compiler.program.lengths import shown
from hbpcompiler.compiler.trace.conditions.sizes import EVERY, Sizes
from hbpcompiler.limits import DEFAULT_LIMITS, Limits
from hbpcompiler.quantities import QUANTITIES

TABLES: Mapping[str, str] = {
    SAVED: "what modules make on their way forward and read on their way back",
    SHARED: "what modules make of their parameters once, for all their later lines",
}


STATE = "state"
"""The program's first argument."""
OF_TORCH = ("aten", "prim", "prims", "mkldnn")
"""Of the namespaces below torch.ops those that come with it."""
OF_LARGE = (PARAMETERS, ENDS, ENDS_CLASS, SHARED, SAVED, f"{SAVED}_n", "path", "name", "tensor", "value")
"""What stands in every large program, and is no value's name."""


@dataclass
class Header:
    """What the file says about itself."""

    model: str
    quantities: tuple[str, ...]
    versions: str
    table: Sequence[str]
    notes: Sequence[str] = ()
    modules: Mapping[str, str] = field(default_factory=dict)
    """The types of the model's modules, by their paths."""
    sizes: Sizes = EVERY
    """The batch sizes that the program serves."""


def emit(graph: fx.Graph, header: Header, inputs: Mapping[str, str], outputs: Sequence[str] = ("output",),
         *, limits: Limits = DEFAULT_LIMITS, outline: bool = True) -> str:
    """The file's text. `inputs` maps placeholders of inputs and targets to their names, in order; `outputs` are the
    result's fields for the model's outputs."""
    names = Names()
    output = next(node for node in graph.nodes if node.op == "output")
    loss, predictions, results = output.args[0]  # as derive wrote it
    large = is_large(results, limits)
    names.taken.update(OF_LARGE if large else [])
    given = _given(graph, inputs, names)
    entries: dict[fx.Node, Place] = {}
    shared = Outline()
    if large:
        entries, shared = _in_tables(graph, results, header.modules, limits if outline else None)
    variables = {name: names.fresh(name) for name in header.quantities} if large else {}
    listed = _listed(results, header.quantities, names) if large else Listed()
    functions = Functions(names, shared, entries, limits, listed=listed, lengths=lengths(graph, entries),
                          where=where_in(graph))
    printer = Printer(graph, names, given, functions, functions.texts_of_places(graph))
    look = printer.look

    asked = {name: results[name] for name in header.quantities}
    as_tables = large and can_be_tables(asked)
    parts = _sections(printer, as_tables)
    if as_tables:
        parts["results"] = result_tables(entries, look, names, asked, variables, listed, _axes(functions))
    returned = {look(node)[0] for node in output.all_input_nodes if node in printer.texts} | {*variables.values()}
    sections = [section for sections in parts.values() for section in sections]
    free_at_last_use(sections, returned, limits)
    tell_once(sections, functions.texts)
    tables = sorted({place.table for place in entries.values() if ends_at_parameters(place.table)})
    if large:
        _open_with_tables(parts, parameter_table(relaid(graph, entries), listed, _axes(functions)), functions, tables)
    if written_for := conditions(given, header.sizes):
        parts["forward"][0].lines[:0] = written_for

    text = _template().render(
        **_of_the_head(header, parts, functions, definitions(graph), tables),
        header=header,
        fields=[_field(name, results[name], variables[name] if as_tables else "", look) for name in header.quantities],
        parts={part: merged(sections) for part, sections in parts.items()} if large else parts,
        arguments=[_parameter(node, given[node]) for node in given if node.target != STATE],
        call=_call(given),
        state=STATE,
        loss=look(loss)[0],
        outputs=[(name, look(node)[0]) for name, node in zip(outputs, predictions, strict=True)],
    )
    return laid_out(shown(text))


def _given(graph: fx.Graph, inputs: Mapping[str, str], names: Names) -> dict[fx.Node, str]:
    """What the program is called with, and its names."""
    given: dict[fx.Node, str] = {}
    for node in graph.nodes:
        if node.op == "placeholder" and not meta.argument(node):
            given[node] = STATE if node.target == STATE else names.fresh(inputs[str(node.target)])
        elif node.op == "placeholder":
            given[node] = meta.argument(node)
    return given


def _in_tables(graph: fx.Graph, results: Any, modules: Mapping[str, str],
               limits: Limits | None) -> tuple[dict[fx.Node, Place], Outline]:
    """Of a large program: what stands in tables, by parameters' names, and what alike parts share as functions (None:
    nothing)."""
    entries = places(graph, results)
    if limits is None:
        return entries, Outline()
    entries |= made_once(graph, entries)
    shared, saved = shared_by_modules(graph, outlined(graph, entries, limits), entries, modules, limits)
    return entries | saved, shared


def _axes(functions: Functions) -> dict[str, int]:
    """How many axes a parameter has."""
    return {key: len(shape) for key, shape in functions.lengths.items()}


def _open_with_tables(parts: dict[str, list[Section]], head: list[str], functions: Functions,
                      tables: Sequence[str]) -> None:
    """Before the first line of a large program: its parameters, and tables that are empty yet."""
    listed, entries = functions.listed, functions.places
    if re.search(rf"\b{listed.name}\b", "\n".join([*head, _code(parts, functions)])):
        head.insert(0, f"{listed.name} = {listed.spelt(listed.keys)}")
    head += [f"{table}: Dict[str, Tensor] = {{}}  # {what}" for table, what in TABLES.items()
             if any(place.table == table for place in entries.values())]
    parts["forward"][0].lines[:0] = head
    if tables:
        parts["backward"].insert(0, Section("what ends at parameters, by their names", [
            f"{ENDS} = {ENDS_CLASS}({', '.join(f'{table}={{}}' for table in tables)})"]))


def _of_the_head(header: Header, parts: Mapping[str, Sequence[Section]], functions: Functions, helpers: Sequence[str],
                 tables: Sequence[str]) -> dict[str, Any]:
    """What stands above the program: docstring, helpers, functions of modules, classes of results."""
    texts = list(functions.texts.values())
    code = _code(parts, functions)
    records = {record["name"]: record for record in (_record(name) for name in header.quantities) if record}
    return {
        "table": [comment(line) for line in header.table],
        "notes": [comment(line) for line in header.notes],
        "needs": _needs("\n".join([code, *helpers])),  # derived rules call their operations in helpers
        "legend": legend(code, tables, [section.formula for sections in parts.values() for section in sections],
                         functions.where),
        "tables": tables,
        "ends": ENDS_CLASS,
        "helpers": helpers,
        "functions": texts,
        "mathematics": bool(re.search(r"\bmath\.", "\n".join([code, *helpers]))),
        "callables": any("Callable[" in text for text in helpers),
        "tuples": any("-> Tuple[" in text for text in texts),
        "records": list(records.values()),
        "lists": any(QUANTITIES[name].lists for name in header.quantities),
    }


def _needs(code: str) -> str:
    """What has to be there for the file to run."""
    operations = sorted({f"{library}::{name}" for library, name in re.findall(r"torch\.ops\.(\w+)\.(\w+)", code)
                         if library not in OF_TORCH})
    if not operations:
        return "only torch"
    return f"torch and, imported before it is called, what registers {', '.join(operations)}"


def _listed(results: Mapping[str, Any], quantities: Sequence[str], names: Names) -> Listed:
    """The parameters, in the order of the first quantity that has a result for each."""
    keys = next((tuple(results[name]) for name in quantities if isinstance(results[name], dict)), ())
    return Listed(names.fresh("parameters"), keys)


def _code(parts: Mapping[str, Sequence[Section]], functions: Functions) -> str:
    """All statements of the file."""
    lines = [line for sections in parts.values() for section in sections for line in section.lines]
    return "\n".join([*lines, *functions.texts.values()])


def _sections(printer: Printer, without_results: bool) -> dict[str, list[Section]]:
    """The program's lines by part and heading."""
    parts: dict[str, list[Section]] = {"forward": [], "backward": [], "results": []}
    for block, lines in printer.statements(without_results):
        part, title = (block.part, comment(block.title)) if block else ("forward", "")
        sections = parts[part]
        formula = comment(block.formula) if block else ""
        if not sections or (sections[-1].title, sections[-1].formula) != (title, formula):
            sections.append(Section(title, formula=formula))
        sections[-1].lines += lines
    return parts


def _record(name: str) -> dict[str, Any] | None:
    quantity = QUANTITIES[name]
    if not quantity.fields:
        return None
    special = {**dict.fromkeys(quantity.optional, "Optional[Tensor]"), **dict.fromkeys(quantity.lists, "List[Tensor]")}
    return {"name": quantity.record, "fields": [(part, special.get(part, "Tensor")) for part in quantity.fields]}


def _parameter(node: fx.Node, name: str) -> str:
    """A tensor of the batch, or a call argument, in the signature."""
    argument = ARGUMENTS.get(meta.argument(node))
    if argument is None:
        return f"{name}: Tensor"
    return f"{name}: {argument.annotation}" + (f" = {argument.default}" if argument.default is not None else "")


def _call(given: Mapping[fx.Node, str]) -> str:
    """How the program is called, with what may be left out."""
    defaults = {node: ARGUMENTS[meta.argument(node)].default for node in given if meta.argument(node)}
    return f"Program()({', '.join(_left_out(name, defaults.get(node)) for node, name in given.items())})"


def _left_out(name: str, default: str | None) -> str:
    return name if default is None else f"{name}={default}"


def _field(name: str, results: Any, variable: str, look: Callable[[fx.Node], Text]) -> dict[str, Any]:
    """A field of the result: a dict by parameter, or one tensor; it may stand in a variable."""
    quantity = QUANTITIES[name]
    kind, entries, value = quantity.record or "Tensor", [], variable
    if isinstance(results, fx.Node):
        value = variable or look(results)[0]
    else:
        kind = f"Dict[str, {kind}]"
        entries = [] if variable else [
            (quote(key), record_text(name, result, look)) for key, result in results.items()]
    return {"name": name, "type": kind, "entries": entries, "value": value, "summary": quantity.summary}


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("hbpcompiler.codegen", "."), trim_blocks=True, lstrip_blocks=True,
        keep_trailing_newline=True, undefined=jinja2.StrictUndefined, autoescape=False,
    )
    return environment.get_template("program.py.jinja")

"""The tables of a large program: its parameters in front, its results, and what is written once for many of them."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import fx

from hbpcompiler.arguments import ARGUMENTS
from hbpcompiler.codegen.lifetimes import Section
from hbpcompiler.codegen.naming import Names, identifier
from hbpcompiler.codegen.places import PARAMETERS, Listed, Places, is_of_results, written
from hbpcompiler.codegen.printer import ADD, ATOM, MULTIPLY, Text, expression, quote
from hbpcompiler.codegen.segments import is_text
from hbpcompiler.compiler.program import meta
from hbpcompiler.compiler.program.nodes import shows_its_input
from hbpcompiler.compiler.program.writer import Loop
from hbpcompiler.quantities import QUANTITIES

Look = Callable[[fx.Node], Text]
IN_PLACE: Mapping[Any, tuple[str, int]] = {"div_": ("/", MULTIPLY), "sub_": ("-", ADD)}
"""Method -> the operator that stands for it where nobody sees what is overwritten."""


def parameter_table(relaid: Sequence[str], listed: Listed, axes: Mapping[str, int]) -> list[str]:
    """Parameters and buffers by their names, `relaid` those of another memory layout. `axes`: how many each has."""
    lines = [f"{PARAMETERS} = {{name: tensor.detach() for name, tensor in state.items()}}"]
    turn = f"{PARAMETERS}[name] = {PARAMETERS}[name].contiguous(memory_format=torch.channels_last)"
    if relaid and set(relaid) == {key for key in listed.keys if axes.get(key) == 4}:
        lines += [f"for name in {listed.name}:", f"    if {PARAMETERS}[name].dim() == 4:", f"        {turn}"]
    elif relaid:
        lines += [f"for name in {listed.spelt(relaid)}:", f"    {turn}"]
    return lines


def record_text(quantity: str, value: Any, look: Look) -> str:
    """A parameter's result: a tensor, or a named tuple of tensors, lists of tensors and None."""
    fields = QUANTITIES[quantity].fields
    if not fields:
        return look(value)[0]
    return f"{QUANTITIES[quantity].record}({', '.join(_part(value[field], look) for field in fields)})"


def _part(value: Any, look: Look) -> str:
    if isinstance(value, list):
        return f"[{', '.join(look(item)[0] for item in value)}]"
    return "None" if value is None else look(value)[0]


def can_be_tables(results: Mapping[str, Any]) -> bool:
    """Whether each line of the results can be written where it is read: it is read once, or is a result by itself, and
    stands in an earlier line. `results` in the order of the lines."""
    written: set[fx.Node] = set()
    for values in results.values():
        for value in values.values() if isinstance(values, dict) else [values]:
            own = list(_nodes_of(value))
            if not all(_can_be_written(read, written) for node in own for read in _reads(node, written)):
                return False
            written.update(own if isinstance(values, dict) else ())
    return True


def _can_be_written(node: fx.Node, written: set[fx.Node]) -> bool:
    """Whether what a result reads can stand in its line."""
    if node in written or not is_of_results(node) or is_text(node):
        return True
    return len(node.users) == 1 and all(_can_be_written(read, written) for read in node.all_input_nodes)


def _reads(node: fx.Node, written: set[fx.Node]) -> list[fx.Node]:
    return node.all_input_nodes if is_of_results(node) and node not in written else []


def _nodes_of(value: Any) -> Iterator[fx.Node]:
    """The tensors of one result."""
    if isinstance(value, fx.Node):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _nodes_of(part)


def result_tables(places: Places, look: Look, names: Names, results: Mapping[str, Any], variables: Mapping[str, str],
                  listed: Listed, axes: Mapping[str, int]) -> list[Section]:
    """A section for each quantity, in the order in which their lines would stand one by one. `variables`: what each is
    called; `axes`: how many each parameter has."""
    writer = _Results(places, look, names, variables, axes)
    sections = []
    for quantity, values in results.items():
        if isinstance(values, fx.Node):
            sections.append(Section(quantity, [f"{variables[quantity]} = {writer.of_batch(values)}"]))
            continue
        sections.append(Section(quantity, writer.lines(quantity, values, listed.text(list(values)))))
    return sections


def merged(sections: Sequence[Section]) -> list[Section]:
    """Blocks of one line each, of one part of the network, under one heading: the lines say what they are.

    The heading is the module around; of what a module's own forward does between its parts, that module.
    """
    found: list[Section] = []
    paths = [section.title.rpartition(": ")[0] for section in sections]
    around = {path[:place] for path in paths for place, sign in enumerate(path) if sign == "."}
    for path, section in zip(paths, sections, strict=True):
        short = sum(not line.startswith("del ") for line in section.lines) == 1
        module = path if path in around else path.rpartition(".")[0] or path
        title = module if short and path else section.title
        if found and found[-1].title == title:
            found[-1].lines += section.lines
        else:
            found.append(Section(title, list(section.lines), section.formula * (title == section.title)))
    return found


@dataclass(frozen=True)
class _Form:
    """How a result is made of entries of tables, with `name` in the place of the parameter's."""

    text: str
    """OTHER stands in the place of one more parameter's name."""
    tables: frozenset[str]


OTHER = "\0other"
SAME_AS = "same_as"
"""A dict of parameters that tells with which others they share something; where all these are weights, weight_of."""


class _ByName:
    """Writes the keys of entries in a loop over parameters."""

    def __init__(self, own: str) -> None:
        self.own, self.other = own, ""
        """Of the parameter whose turn it is, and of one more that is met."""

    def text(self, key: str) -> str:
        if key == self.own:
            return "name"
        if key.startswith(f"{self.own} "):  # of a total: its parameter, and which result of it
            return f"name + {quote(key.removeprefix(self.own))}"
        if self.other in ("", key):
            self.other = key
            return OTHER
        return quote(key)


class _Results:
    """Writes quantities: results that are made alike are one line."""

    def __init__(self, places: Places, look: Look, names: Names, variables: Mapping[str, str],
                 axes: Mapping[str, int]) -> None:
        self.places, self.look, self.names, self.variables, self.axes = places, look, names, variables, axes
        self.quantity = ""
        self.others: dict[tuple[tuple[str, str], ...], str] = {}
        """(parameter, the other whose entries its result is made of) -> what the dict of these is called."""
        self.written: dict[fx.Node, tuple[str, str]] = {}
        """Results that have been written: (quantity, parameter), and so how to read them."""
        self.keys: dict[str, set[str]] = {}
        for place in places.values():
            self.keys.setdefault(place.table, set()).add(place.key)

    def lines(self, quantity: str, results: Mapping[str, Any], names: str) -> list[str]:
        """Statements that make the dict of a quantity."""
        self.quantity, variable = quantity, self.variables[quantity]
        groups = self._groups(variable, results)
        kind = QUANTITIES[quantity].record or "Tensor"
        if len(groups) == 1 and OTHER not in next(iter(groups)).text:
            (form,) = groups
            return [f"{variable} = {{name: {form.text} for name in {names}}}"]
        head: list[str] = []
        lines = [f"{variable}: Dict[str, {kind}] = {{}}", f"for name in {names}:"]
        forms = sorted(groups, key=lambda form: len(groups[form]))
        for number, form in enumerate(forms):
            members, text = groups[form], form.text
            left = {key for other_form in forms[number + 1:] for key in groups[other_form]}
            test = self._test(list(members), form, left)
            if OTHER in text and len(members) == 1:
                text = text.replace(OTHER, quote(next(iter(members.values()))))
            elif OTHER in text:
                called, made = self._called(members)
                head += made
                text, test = text.replace(OTHER, f"{called}[name]"), f"name in {called}"
            word = "if" if number == 0 else "elif"
            lines.append("    else:" if number == len(forms) - 1 and number else f"    {word} {test}:")
            lines.append(f"        {variable}[name] = {text}")
        return [*head, *lines]

    def _groups(self, variable: str, results: Mapping[str, Any]) -> dict[_Form, dict[str, str]]:
        """Parameters whose results are made alike, each with the other parameter that its result is made of."""
        groups: dict[_Form, dict[str, str]] = {}
        in_place: dict[_Form, _Form] = {}
        for key, value in results.items():
            form, other = self._form(key, value)
            in_place[form] = self._form(key, value, in_place=True)[0]
            groups.setdefault(form, {})[key] = other
            for field, node in value.items() if isinstance(value, dict) else [("", value)]:
                if isinstance(node, fx.Node):
                    self.written.setdefault(node, (f"{variable}[{{name}}]{'.' if field else ''}{field}", key))
        for form, same in in_place.items():  # a division in place and one that is not are one line
            if same != form and same in groups:
                groups[same] |= groups.pop(form)
        return groups

    def _called(self, others: Mapping[str, str]) -> tuple[str, list[str]]:
        """The dict that tells of each parameter the other: its name, and the line that makes it if there is none."""
        key = tuple(others.items())
        if key in self.others:
            return self.others[key], []
        (leaf, *others_leaves) = {other.rpartition(".")[2] for other in others.values()}
        wish = SAME_AS if others_leaves else f"{leaf}_of"
        wish = f"{wish}_in_{self.quantity}" if identifier(wish) in self.names.taken else wish
        name = self.others[key] = self.names.fresh(wish)
        return name, [f"{name} = {{{', '.join(f'{quote(own)}: {quote(other)}' for own, other in key)}}}"]

    def of_batch(self, node: fx.Node) -> str:
        """The one value of a quantity, for the whole batch."""
        def text_of(read: fx.Node) -> Text:
            return self._result(read, text_of) if is_of_results(read) else self.look(read)

        return text_of(node)[0]

    def _test(self, keys: Sequence[str], form: _Form, others: set[str]) -> str:
        """What tells these parameters from all others that are left."""
        for table in sorted(form.tables):
            if not self.keys[table] & others:
                return f"name in {written(table)}"
        if len(keys) == 1:
            return f"name == {quote(keys[0])}"
        own, rest = ({self.axes.get(key, 0) for key in found} for found in (keys, others))
        if 0 not in own | rest:
            for sign, told in (("==", len(own) == 1 and not own & rest), (">", min(own) > max(rest, default=0))):
                if told:
                    return f"{PARAMETERS}[name].dim() {sign} {min(own) - (sign == '>')}"
        return f"name in {Listed.spelt(keys)}"

    def _form(self, key: str, value: Any, in_place: bool = False) -> tuple[_Form, str]:
        """How it is written, and the name of the other parameter that it is made of. `in_place`: with a division of
        what nobody else reads in place, as large tensors are divided."""
        tables: set[str] = set()
        names = _ByName(key)

        def text_of(node: fx.Node) -> Text:
            if node in self.written:
                made, its_key = self.written[node]
                return made.format(name=names.text(its_key)), ATOM
            place = self.places.get(node)
            if place is None:
                return self._result(node, text_of, in_place) if is_of_results(node) else self.look(node)
            name = names.text(place.key)
            if place.table in ARGUMENTS:
                return f"{place.table}[{name}]", ATOM
            tables.add(place.table)
            # What is read once leaves its table, and so ends.
            table = written(place.table)
            return (f"{table}.pop({name})" if len(node.users) == 1 else f"{table}[{name}]"), ATOM

        return _Form(record_text(self.quantity, value, text_of), frozenset(tables)), names.other

    @staticmethod
    def _result(node: fx.Node, text_of: Look, in_place: bool = False) -> Text:
        """A line of the results as an expression; one in place of what others read too is one like any other."""
        if in_place and _divides_what_ends(node):
            divided, by = text_of(cast("fx.Node", node.args[0]))[0], node.args[1]
            return f"{divided}.div_({text_of(by)[0] if isinstance(by, fx.Node) else repr(by)})", ATOM
        if node.op != "call_method" or node.target not in IN_PLACE or node.kwargs or _is_alone(node):
            return expression(node, text_of)
        sign, strength = IN_PLACE[node.target]
        (left, binds), right = text_of(cast("fx.Node", node.args[0])), node.args[1]
        shown, tight = text_of(right) if isinstance(right, fx.Node) else (repr(right), ATOM)
        left = left if binds >= strength else f"({left})"
        return f"{left} {sign} {shown if tight > strength else f'({shown})'}", strength


def _divides_what_ends(node: fx.Node) -> bool:
    """Whether it is a quotient that may be written over what it divides: nobody else has that, nor its memory."""
    divided = node.args[0] if node.target is operator.truediv else None
    return (isinstance(divided, fx.Node) and not is_of_results(divided) and meta.alike(node, divided)
            and _is_alone(divided))


def _is_alone(node: fx.Node) -> bool:
    """Whether the node has one reader, and so has all whose memory it shows."""
    while len(node.users) == 1:
        before = node.args[0] if node.args and shows_its_input(node) else None
        if not isinstance(before, fx.Node) or isinstance(before.target, Loop | torch._ops.OpOverloadPacket):
            return True  # a tensor of its own, or one of several that a loop or a kernel makes
        node = before
    return False

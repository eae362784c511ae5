"""The finished text with no line over 120 signs: statements are broken inside brackets, where Python allows it.

A statement that fits with its shape is left alone. What does not fit is broken at its operators, at the longest pair
of brackets, or in front of a method, in this order of preference; the parts are laid out likewise, and the shape
stands behind the last of them. A function's head is broken at its parameters. Everything is read as tokens, so nothing
inside a string is touched.
"""

from __future__ import annotations

import re
import sys
import textwrap
import tokenize
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

WIDTH = 120
STEP = 4
OPERATORS = (("==", "!=", "<", "<=", ">", ">="), ("|",), ("&",), ("+", "-"), ("*", "/", "//", "%", "@"))
"""By rising strength: a line is broken in front of the weakest."""
OPENING, CLOSING = "([{", ")]}"
HEADING = re.compile(r"^ *# \S.*?    (?=\S)")
"""In front of what is computed under it."""
FORMULA = re.compile(r"(?:[^,;]{1,60}likewise, )?[^,;]{1,80}[,;]?(?: +|$)")
"""One of a heading's formulas, such as B = sum S S^T / P, with the parameter that it is of: it is not broken."""
NAMED_SHAPE = re.compile(r"(?:\w+ and )*\w+ \[[^\[\]]*\]")
"""g and M [N, 1, 4]."""
SHAPE, BETWEEN_SHAPES = "# [", "], ["
"""How a comment on shapes begins, and what stands between two."""
SAME = re.compile(r"(?<=  # )(?P<shape>\[[^\[\]]*\])(, (?P=shape))+$")
"""The shapes of several tensors, if all have one."""
HELD = "\N{NO-BREAK SPACE}"


def laid_out(text: str) -> str:
    """The same file, its docstring's and its statements' long lines wrapped."""
    lines: list[str] = []
    in_docstring = False
    for number, line in enumerate(text.split("\n")):
        if '"""' in line and line.count('"""') == 1 and (in_docstring or number == 0):
            in_docstring = not in_docstring
        lines += _wrapped_text(line, "") if in_docstring else wrapped(line)
    return "\n".join(line.rstrip() for line in lines)


def wrapped(line: str) -> list[str]:
    """One line of code, with its comment, as lines that fit."""
    line = SAME.sub(r"\g<shape> each", line)
    if len(line) <= WIDTH:
        return [line]
    body = line.lstrip()
    indent = len(line) - len(body)
    if body.startswith(tuple(CLOSING)):  # the end of a function's head
        return _behind(body, indent)
    code, comment = _apart(body)
    if not code:
        return _wrapped_text(line, "# ")
    if code.startswith("del "):
        return _deletes("del ", code[4:].split(", "), indent)
    lines = [" " * indent + code] if indent + len(code) <= WIDTH else _statement(code, indent)
    if comment.startswith(SHAPE):
        return _with_shapes(code, lines, comment, indent)
    if not comment:
        return lines
    last = f"{lines[-1]}  {comment}"
    if len(lines) > 1 and len(last) <= WIDTH:
        return [*lines[:-1], last]
    return [*_wrapped_text(" " * indent + comment, "# "), *lines]


def _with_shapes(code: str, lines: list[str], comment: str, indent: int) -> list[str]:
    """A statement with the shapes of what it makes behind it; those that do not fit its last line follow below."""
    roomy = _statement_with_room(code, indent) if len(lines) == 1 else []
    for form in (lines, roomy):
        if form and len(f"{form[-1]}  {comment}") <= WIDTH:
            return [*form[:-1], f"{form[-1]}  {comment}"]
    first, *others = comment.removeprefix("# ").replace(BETWEEN_SHAPES, f"],{HELD}[").split(HELD)
    rows = [*lines, " " * indent + "#  "]
    if len(f"{lines[-1]}  # {first}") <= WIDTH:
        rows = [*lines[:-1], f"{lines[-1]}  #"]
    for shape in (first, *others):
        if len(f"{rows[-1]} {shape}") > WIDTH:
            rows.append(" " * indent + "#  ")
        rows[-1] += f" {shape}"
    return rows


def _statement_with_room(code: str, indent: int) -> list[str]:
    """A statement that fits a line, broken so that its last line is short: in brackets of its own if it has no long
    pair."""
    start, value = _apart_at_equals(code)
    if not start and code.startswith("return "):
        start, value = "return ", code.removeprefix("return ")
    opened, closed = _longest(value)
    if start and (_cuts(value) or closed - opened < len(value) / 3) and not start.startswith(tuple(OPENING)):
        return [" " * indent + start + "(", *_item(value, indent + STEP), " " * indent + ")"]
    return _in_brackets(code, indent) or [" " * indent + code]


def _apart_at_equals(code: str) -> tuple[str, str]:
    """An assignment's targets with the sign behind them, and its value."""
    equals = next((token.at for token in _tokens(code) if token.text == "=" and token.depth == 0), None)
    return ("", code) if equals is None else (code[: equals + 2], code[equals + 2 :])


def _wrapped_text(line: str, mark: str) -> list[str]:
    """Prose, or a row of a table: what goes on stands two signs further in."""
    if len(line) <= WIDTH:
        return [line]
    indent = " " * (len(line) - len(line.lstrip()))
    heading = HEADING.match(line)
    if heading is not None:
        line = line[: heading.end()] + FORMULA.sub(_held, line[heading.end() :])
    lines = textwrap.wrap(line, WIDTH, initial_indent="", subsequent_indent=f"{indent}{mark}  ",
                          break_long_words=False, break_on_hyphens=False, drop_whitespace=True)
    return [wrapped.replace(HELD, " ") for wrapped in lines]


def wrapped_formulas(parts: Sequence[str], width: int) -> list[str]:
    """Lines of words, in which names stand before their shapes, and perhaps of formulas behind them: none of these is
    broken."""
    words, *formulas = parts
    whole = "  ".join([NAMED_SHAPE.sub(_held, words), *(FORMULA.sub(_held, part) for part in formulas)])
    lines = textwrap.wrap(whole, width, break_long_words=False, break_on_hyphens=False)
    return [line.replace(HELD, " ") for line in lines]


def _held(formula: re.Match[str]) -> str:
    """Words that stay in one line, and the space behind them."""
    words = formula.group().rstrip()
    return words.replace(" ", HELD) + formula.group()[len(words) :]


def _deletes(start: str, names: Sequence[str], indent: int) -> list[str]:
    """As many `del` as needed: TorchScript knows none with brackets."""
    lines: list[str] = []
    for name in names:
        if lines and len(lines[-1]) + len(name) + 2 <= WIDTH:
            lines[-1] += f", {name}"
        else:
            lines.append(" " * indent + start + name)
    return lines


@dataclass(frozen=True)
class _Token:
    at: int
    text: str
    depth: int
    """Pairs of brackets around it; of a bracket, around the pair."""
    binary: bool
    """Whether an operand stands in front of it."""


@lru_cache(maxsize=64)  # where to break a line is asked of the same text in several ways
def _tokens(code: str) -> Sequence[_Token]:
    found: list[_Token] = []
    depth = 0
    operand = False
    for token in tokenize.generate_tokens(iter([code]).__next__):
        if token.type not in (tokenize.NAME, tokenize.OP, tokenize.NUMBER, tokenize.STRING):
            continue
        depth -= token.string in CLOSING
        found.append(_Token(token.start[1], token.string, depth, operand))
        depth += token.string in OPENING
        operand = token.type != tokenize.OP or token.string in CLOSING
    return found


def _apart(body: str) -> tuple[str, str]:
    """A line's code and its comment."""
    for token in tokenize.generate_tokens(iter([body]).__next__):
        if token.type == tokenize.COMMENT:
            return body[: token.start[1]].rstrip(), body[token.start[1] :]
    return body, ""


def _statement(code: str, indent: int) -> list[str]:
    """A statement too long for a line: what is outside of brackets is put inside a pair if it must be broken."""
    start, value = _apart_at_equals(code)
    if start and indent + len(start) > WIDTH and start.startswith(tuple(OPENING)):
        *targets, closing = _in_brackets(start[:-2].rstrip(), indent)
        return [*targets, *_behind(f"{closing.strip()} = {value}", indent)]
    bare = _cuts(value)
    if start and bare:
        return [" " * indent + start + "(", *_joined(_parts(value, bare), indent + STEP), " " * indent + ")"]
    return _in_brackets(code, indent) or _after_key(code, indent)


def _behind(code: str, indent: int) -> list[str]:
    """What goes on behind a closing bracket, with which it begins."""
    if indent + len(code) <= WIDTH:
        return [" " * indent + code]
    bracket, stands_for_it = code[0], "_"  # as pairs of brackets are counted in what is broken
    first, *others = _statement(stands_for_it + code[1:], indent)
    return [first.replace(stands_for_it, bracket, 1), *others]


def _after_key(code: str, indent: int) -> list[str]:
    """An entry of a dict with its value below its key."""
    colon = next((token.at for token in _tokens(code) if token.text == ":" and token.depth == 0), len(code) - 1)
    value = [" " * (indent + STEP) + code[colon + 1 :].strip()] if colon < len(code) - 1 else []
    return [" " * indent + code[: colon + 1], *value]


def _cuts(code: str) -> list[int]:
    """Where an expression may be broken inside brackets: its weakest operators, or its methods if no bracket is long.
    """
    tokens = [token for token in _tokens(code) if token.depth == 0]
    for operators in OPERATORS:
        cuts = [token.at for token in tokens if token.text in operators and token.binary]
        if cuts:
            return cuts
    dots = [token.at for token in tokens if token.text == "." and token.at > 0]
    first, last = _longest(code)
    return dots[1:] if len(dots) > 2 and last - first < len(code) / 3 else []


def _parts(code: str, cuts: Sequence[int]) -> list[str]:
    bounds = [0, *cuts, len(code)]
    return [code[first:last].rstrip() for first, last in pairwise(bounds)]


def _joined(parts: Sequence[str], indent: int) -> list[str]:
    """Parts of an expression, as many to a line as fit."""
    lines: list[str] = []
    for part in parts:
        space = "" if part.startswith(".") else " "
        if lines and len(lines[-1]) + len(space + part) <= WIDTH:
            lines[-1] += space + part
        else:
            lines += _item(part, indent)
    return lines


def _item(code: str, indent: int) -> list[str]:
    """What stands inside brackets already."""
    if indent + len(code) <= WIDTH:
        return [" " * indent + code]
    cuts = _cuts(code)
    if cuts:
        return _joined(_parts(code, cuts), indent)
    return _in_brackets(code, indent) or [" " * indent + code]


def _longest(code: str, width: int = sys.maxsize) -> tuple[int, int]:
    """The longest pair of brackets that is inside no other and opens within the width; a later one that is hardly
    shorter is preferred."""
    best = (0, 0)
    for opened, closed in _outermost(code):
        if opened < width and 3 * (closed - opened) > 2 * (best[1] - best[0]):
            best = opened, closed
    return best


def _outermost(code: str) -> list[tuple[int, int]]:
    """The pairs of brackets that are inside no other."""
    brackets = [token for token in _tokens(code) if token.depth == 0 and token.text in OPENING + CLOSING]
    return [(opened.at, closed.at) for opened, closed in zip(brackets[::2], brackets[1::2], strict=False)]


def _in_brackets(code: str, indent: int) -> list[str]:
    """Broken behind its longest bracket, a head's at its parameters, what is inside further in; empty where that is no
    help."""
    first, last = _outermost(code)[0] if code.startswith("def ") else _longest(code, WIDTH - indent)
    if last - first < 2:
        return []
    inside = list(_items(code[first + 1 : last]))
    lines: list[str] = []
    for item in inside:
        if lines and len(lines[-1]) + len(item) + 1 <= WIDTH:
            lines[-1] += f" {item}"
        else:
            lines += _item(item, indent + STEP)
    return [" " * indent + code[: first + 1], *lines, *_behind(code[last:], indent)]


def _items(code: str) -> Iterator[str]:
    """What commas separate, each with its comma."""
    start = 0
    for token in _tokens(code):
        if token.text == "," and token.depth == 0:
            yield code[start : token.at + 1].strip()
            start = token.at + 1
    if code[start:].strip():
        yield code[start:].strip()

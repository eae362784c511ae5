"""Where tensors end: each block of lines ends by deleting the large tensors that no later line reads.

Python frees a tensor when its last name goes. Without this the columns of all layers would live to the end of the call,
and so would what the forward pass saved and the last round's chunks of every loop.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from hbpcompiler.limits import DEFAULT_LIMITS, Limits

MADE = re.compile(r"^\(?(?P<names>[A-Za-z_]\w*(?:, [A-Za-z_]\w*)*)\)? = ")
NAME = re.compile(r"(?<![.\w])[A-Za-z_]\w*")
"""Of a variable; `.square()` does not read a tensor that is called square."""
SHAPE = re.compile(r"\[([^\]]*)\]")
"""In a comment; behind a call with several results there are several."""
AS_ABOVE = "as above"
"""What stands behind a heading instead of what is computed, where that has been said."""
HEADING = re.compile(r"^(?P<indent> *)# (?P<heading>(?P<title>\S.*?)    \S.*)$")
"""Inside of a loop or a function, with what is computed under it."""
WORD = re.compile(r"[A-Za-z_]\w*")
LENGTH = re.compile(r"(?:(?P<factor>\d+)\*)?(?P<letter>[Nnk])\b|(?P<number>\d+)")


@dataclass
class Section:
    """Lines under one heading."""

    title: str
    lines: list[str] = field(default_factory=list)
    formula: str = ""

    @property
    def heading(self) -> str:
        """The title, and what is computed under it."""
        return f"{self.title}    {self.formula}" if self.formula else self.title


def tell_once(sections: Sequence[Section], functions: dict[str, str]) -> None:
    """What is computed under a heading is said where it stands first, in the program if it stands there; what a loop's
    body says is said in that section alone, where its reader is.

    Functions stand in front of the program: what is said there is no more said in them, and not "above" either.
    """
    said: set[str] = set()
    for section in sections:
        if section.formula and section.heading in said:
            section.formula = AS_ABOVE
        said.add(section.heading)
        here = set(said)
        section.lines = [_untold(line, here) for line in section.lines]
    above: set[str] = set()
    for name, text in functions.items():
        functions[name] = "\n".join(_untold(line, above, said) for line in text.split("\n"))


def _untold(line: str, above: set[str], below: Collection[str] = ()) -> str:
    """A line; if it is a heading that is said above or below, without what is computed under it."""
    match = HEADING.match(line)
    if match is None:
        return line
    title, heading = f"{match['indent']}# {match['title']}", match["heading"]
    if heading in below:
        return title
    if heading in above:
        return f"{title}    {AS_ABOVE}"
    above.add(heading)
    return line


def free_at_last_use(sections: Sequence[Section], kept: Collection[str] = (),
                     limits: Limits = DEFAULT_LIMITS, sizes: Mapping[str, int] | None = None) -> bool:
    """Add the lines that delete, and say whether there are any; not for names that are kept, nor in the last section,
    behind which a program or a function returns. `sizes` are those of letters in shapes."""
    last: dict[str, int] = {}
    for index, section in enumerate(sections):
        for names, shape, line in _statements(section.lines):
            if _is_large(shape, limits, sizes or {}):
                last |= dict.fromkeys(sorted(names.difference(kept)), index)
            last |= dict.fromkeys(last.keys() & set(NAME.findall(line)), index)
    for index, section in enumerate(sections[:-1]):
        dead = [name for name, at in last.items() if at == index]
        if dead:
            section.lines.append(f"del {', '.join(dead)}")
    return any(at < len(sections) - 1 for at in last.values())


def _statements(lines: Sequence[str]) -> Iterator[tuple[set[str], str, str]]:
    """Names that a line makes at this depth, the shape behind it or "", the line."""
    for line in lines:
        match = MADE.match(line)
        names = {name for name in match["names"].split(", ") if name != "_"} if match is not None else set()
        _, told, shape = line.rpartition("  # ")
        yield names, shape if told else "", line


def _is_large(comment: str, limits: Limits, sizes: Mapping[str, int]) -> bool:
    """Whether the shape in a comment is worth it; where it grows with the batch, if there are several per sample."""
    return any(_is_large_shape(inside, limits, sizes) for inside in SHAPE.findall(comment))


def _is_large_shape(inside: str, limits: Limits, sizes: Mapping[str, int]) -> bool:
    texts = [WORD.sub(lambda word: str(sizes.get(word[0], word[0])), text) for text in inside.split(", ")]
    lengths = [match for text in texts if (match := LENGTH.match(text)) is not None]
    each = math.prod(int(match["factor"] or match["number"] or 1) for match in lengths)
    letters = {match["letter"] for match in lengths if match["letter"]}
    if "N" in letters:
        return len(lengths) > 1 and each > 1
    of_chunk = bool(letters) or inside.startswith("1, ")
    return each >= (limits.large_item_numbers if of_chunk else limits.large_numbers)

"""Cases of rules for images of one, two and three axes, written once for all three."""

from __future__ import annotations

from typing import Any

from hbpcompiler.rule import Case


def case_of_images(axes: int, *shape: int, **attributes: Any) -> Case:
    """Of a shape (channels, ...) and attributes for three axes, as many as there are."""
    short = {name: value[:axes] if isinstance(value, list) else value for name, value in attributes.items()}
    return Case({"self": (shape[0], *shape[1 : axes + 1])}, short)

"""Cases of rules for images of one, two and three axes, written once for all three."""

from __future__ import annotations

from typing import Any

from hbpcompiler.rule import Case


def case_of_images(axes: int, *shape: int, **attributes: Any) -> Case:
    """Of a shape (channels, ...) and attributes for three axes, as many as there are."""
    short = {name: value[:axes] if isinstance(value, list) else value for name, value in attributes.items()}
    return Case({"self": (shape[0], *shape[1 : axes + 1])}, short)


def adaptive_cases(axes: int) -> list[Case]:
    """Of pools to a given size, with channels and without."""
    return [
        case_of_images(axes, 2, 4, 2, 3, output_size=[2, 1, 3]),
        case_of_images(axes, 2, 5, 4, 3, output_size=[3, 3, 2]),
        case_of_images(axes, 2, 3, 3, 2, output_size=[1, 1, 1]),
        case_of_images(axes, 1, 2, 3, 2, output_size=[3, 4, 2]),
        Case({"self": (4, 3, 2)[:axes]}, {"output_size": [3, 1, 2][:axes]}),
    ]

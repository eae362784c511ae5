"""One line of a log: strict JSON, in which numbers that are not finite are strings."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

NOT_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
DIGITS = 9
"""Significant ones of a number in a log: enough for single precision to come back as it was."""


def encoded(line: Mapping[str, Any]) -> bytes:
    """The line as bytes, with its end; "?" for what is no character, as names of files that are not UTF-8 have."""
    text = json.dumps(_strict(line), allow_nan=False, separators=(",", ":"), ensure_ascii=False)
    return (text + "\n").encode(errors="replace")


def _strict(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _strict(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(part) for part in value]
    if isinstance(value, float):
        return rounded(value) if math.isfinite(value) else str(float(value))
    return value


def rounded(number: float) -> float:
    return float(format(number, f".{DIGITS}g"))


def decoded(text: bytes) -> dict[str, Any]:
    """The line. ValueError, in words, for what is none."""
    try:
        found = json.loads(text.decode(), parse_constant=_refused)
    except UnicodeDecodeError as error:
        raise ValueError("it is not UTF-8 text") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"it is not JSON ({error})") from error
    if not isinstance(found, dict) or not isinstance(found.get("kind"), str):
        raise ValueError('it is not an object {"kind": ...}')
    return found


def _refused(constant: str) -> Any:
    raise ValueError(f"it has {constant}, which is not JSON")


def numbers(value: Any) -> Any:
    """The value with the strings of numbers that are not finite made numbers again."""
    if isinstance(value, dict):
        return {key: numbers(part) for key, part in value.items()}
    if isinstance(value, list):
        return [numbers(part) for part in value]
    return NOT_FINITE.get(value, value) if isinstance(value, str) else value

"""The questions that each family is asked, and what becomes of them."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import date
from typing import Any

import torch

import hbpcompiler as hbp

from .check import TooLongError, diagonal, double_precision, first_order
from .factors import factors
from .family import Case, Family


@dataclass(frozen=True)
class Outcome:
    """What became of one question to one family."""

    status: str
    """"holds", "slow", "refused", "wrong" or "crashes"."""
    seconds: float
    text: str = ""


DIAGONAL = "diag_h"
QUESTIONS: dict[str, Callable[[Case], str]] = {
    "gradient, norms": first_order, DIAGONAL: diagonal, "kflr, kfac": factors,
}
"""Each returns a remark, or nothing."""


def ask(family: Family, question: str) -> Outcome:
    """Make the family's model, compile it and compare."""
    start = time.perf_counter()

    def outcome(status: str, text: str = "") -> Outcome:
        return Outcome(status, time.perf_counter() - start, text)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        case = family.case(small=question == DIAGONAL)
        try:
            with double_precision():
                remark = QUESTIONS[question](case)
        except AssertionError as error:
            if not isinstance(error, hbp.HbpError):
                return outcome("wrong", str(error))
            return outcome("crashes", str(error))
        except hbp.HbpError as error:
            return outcome("refused", str(error))
        except TooLongError as error:
            return outcome("slow", str(error))
        except Exception as error:  # whatever is no HbpError is a fault of ours
            return outcome("crashes", f"{type(error).__name__}: {error}")
    return outcome("holds", remark)


def as_record(family: Family, question: str, outcome: Outcome) -> dict[str, Any]:
    return {"family": family.title, "question": question, "asked": date.today().isoformat(),
            "torch": torch.__version__.partition("+")[0], **asdict(outcome)}

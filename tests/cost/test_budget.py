"""Which draft a memory budget takes, and what a program's text holds, on drafts and programs written by hand."""

from types import SimpleNamespace

import pytest

from hbpcompiler.compiler.budget import Draft, check_fits, size, within_budget
from hbpcompiler.compiler.cost.figures import UNLIMITED
from hbpcompiler.compiler.cost.memory import MemoryModel
from hbpcompiler.compiler.trace.graph import N
from hbpcompiler.errors import InputError, OptionError
from tests.hand_made import value

PROGRAM = """
class Program:
    def forward(self, state, x):
        total = x.new_zeros(3)
        for first in range(0, x.shape[0], 2):
            part = x[first:first + 2].square()
            total.add_(part.sum(0))
        wide = x @ state["w"]
        return total, wide.sum()
"""


def model():
    graph = SimpleNamespace(state=[value("w", 3, 100, role="parameter")], batch=[value("x", N, 3, role="input")])
    return MemoryModel(PROGRAM, graph, allowance=1.0)


def test_the_peak_is_what_the_text_holds_at_most():
    """[N, 100] beside the total and the last chunk, float32."""
    assert model().peak(50) == pytest.approx(4 * (50 * 100 + 3 + 6), rel=0.02)
    assert model().peak(100) > 1.9 * model().peak(50)


def test_the_largest_batch_within_a_budget():
    memory = model()
    fits = memory.largest_batch(memory.peak(20), 64)
    assert fits == 20
    assert memory.largest_batch(10, 64) == 0


class Drafts:
    """A draft's memory is a fixed part and what its chunks may take."""

    def __init__(self, fixed, whole):
        self.fixed, self.whole, self.asked = fixed, whole, []

    def __call__(self, resources):
        self.asked.append(resources.temporaries)
        peak = self.whole if resources.temporaries is None else self.fixed + 5 * resources.temporaries
        memory = SimpleNamespace(peak=lambda batch: peak, largest_batch=lambda budget, batch: 3)
        return Draft(None, None, "", memory, None)


def test_without_a_budget_the_first_draft_is_taken():
    make = Drafts(100, 1000)
    assert within_budget(make, UNLIMITED, None, 8).memory.peak(8) == 1000
    assert within_budget(make, UNLIMITED, 1000, 8).memory.peak(8) == 1000
    assert make.asked == [None, None]


def test_chunks_get_what_the_rest_leaves():
    make = Drafts(100, 10_000)
    assert within_budget(make, UNLIMITED, 900, 8).memory.peak(8) <= 900
    assert make.asked[:2] == [None, 1]
    assert make.asked[2] > make.asked[-1] or len(make.asked) == 3


def test_a_budget_below_the_smallest_chunks_is_refused():
    with pytest.raises(OptionError, match=r"memory_budget=50 .*Batches of up to 3 fit"):
        within_budget(Drafts(100, 1000), UNLIMITED, 50, 8)


def test_a_larger_batch_is_refused():
    memory = Drafts(0, 2048)(UNLIMITED).memory
    check_fits(memory, None, 8)
    check_fits(memory, 2048, 8)
    with pytest.raises(InputError, match=r"a batch of 8 needs about 2.0 KiB, more than memory_budget=100"):
        check_fits(memory, 100, 8)


@pytest.mark.parametrize(("count", "text"), [(5, "5 B"), (1536, "1.5 KiB"), (3 * 2**20, "3.0 MiB"), (2**31, "2.0 GiB")])
def test_bytes_in_words(count, text):
    assert size(count) == text

"""Which draft a memory budget takes, and what a program's text holds, on drafts and programs written by hand."""

from types import SimpleNamespace

import pytest

from hbpcompiler.compiler import budget
from hbpcompiler.compiler.budget import Draft, check_fits, size, within_budget
from hbpcompiler.compiler.cost.figures import UNLIMITED, Resources
from hbpcompiler.compiler.cost.memory import MemoryModel, together
from hbpcompiler.compiler.program.shapes import annotate, arguments
from hbpcompiler.compiler.program.writer import Writer
from hbpcompiler.compiler.trace.graph import N
from hbpcompiler.errors import InputError, OptionError
from hbpcompiler.limits import Limits
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
        memory = SimpleNamespace(peak=lambda batch: peak, largest_batch=lambda budget, batch: 3,
                                 may_exceed=lambda size, batch: peak > size,
                                 surely_within=lambda size, batch: peak <= size)
        return Draft(None, None, "", memory, None, lambda graph: "")


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
    draft = Drafts(0, 2048)(UNLIMITED)
    check_fits(draft.memory, None, 8)
    check_fits(draft.memory, 2048, 8)
    with pytest.raises(InputError, match=r"a batch of 8 needs about 2.0 KiB, more than memory_budget=100"):
        check_fits(draft.memory, 100, 8)


@pytest.fixture
def free(monkeypatch):
    """Sets how many bytes are free."""
    return lambda size: monkeypatch.setattr(budget, "free_bytes", lambda device: size)


LIMITS = Limits(unchecked_bytes=500, free_share=0.5)
NARROW = Resources(limits=LIMITS)


def test_without_a_budget_chunks_keep_to_a_share_of_what_is_free(free):
    make = Drafts(100, 10_000)
    free(1800)
    assert within_budget(make, NARROW, None, 8).memory.peak(8) <= 900
    assert make.asked[:2] == [None, 1]
    free(None)  # a system that does not say
    assert within_budget(make, NARROW, None, 8).memory.peak(8) == 10_000


def test_what_would_be_needed_is_said_where_too_little_is_free(free):
    free(90)
    with pytest.raises(InputError, match=r"a batch of 8 needs about 105 B, even in the smallest chunks, more than the "
                                         r"90 B of memory that are free. Batches of up to 3 "):
        within_budget(Drafts(100, 1000), NARROW, None, 8)
    with pytest.raises(InputError, match=r"needs about 2.0 KiB, more than the 90 B .* set memory_budget"):
        check_fits(Drafts(0, 2048)(UNLIMITED).memory, None, 8, limits=LIMITS)


def test_what_fits_is_not_refused_because_less_is_free_than_when_it_was_planned(free):
    """The last result is still alive, say."""
    free(2100)
    draft = within_budget(Drafts(0, 1000), NARROW, None, 8)
    free(1500)  # half of it is less than the draft takes
    check_fits(draft.memory, None, 8, limits=LIMITS)
    free(150)  # the smallest chunks take more than half of it
    assert within_budget(Drafts(100, 1000), NARROW, None, 8).memory.peak(8) == 105


def test_small_calls_and_budgets_do_not_ask_what_is_free(monkeypatch):
    monkeypatch.setattr(budget, "free_bytes", lambda device: pytest.fail("asked"))
    check_fits(Drafts(0, 400)(UNLIMITED).memory, None, 8, limits=LIMITS)
    check_fits(Drafts(0, 2048)(UNLIMITED).memory, 4096, 8, limits=LIMITS)


def test_no_run_is_needed_where_all_tensors_together_are_small():
    writer = Writer()
    x = writer.placeholder("x")

    def body(part):
        part.totals["t"].add_(part["x"].square().sum(0))

    total = writer.loop(body, op=None, sliced={"x": x}, chunk=2, totals={"t": (3,)})["t"]
    writer.graph.output((total.node,))
    inputs = {"x": value("x", N, 3, role="input")}
    annotate(writer.graph, lambda batch: arguments(writer.graph, inputs, [], batch))
    # The total, made, as the loop's result and as it grows in its body; a chunk's squares and their sum.
    assert together(writer.graph, 50) == together(writer.graph, 8) == 4 * (3 + 3 + 3 + 2 * 3 + 3)
    assert together(writer.graph, 1) == 4 * (3 + 3 + 3 + 3 + 3)  # a chunk is no longer than the batch
    memory = MemoryModel("no program: not to be run", None, 1.0, writer.graph)
    assert not memory.may_exceed(100, 50)


@pytest.mark.parametrize(("count", "text"), [(5, "5 B"), (1536, "1.5 KiB"), (3 * 2**20, "3.0 MiB"), (2**31, "2.0 GiB")])
def test_bytes_in_words(count, text):
    assert size(count) == text

"""Predicted costs: counted on the program step by step, and shown beside the routes that were not taken."""

import pytest
import sympy
import torch
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.compiler.cost.figures import (
    DEFAULT,
    Cost,
    Machine,
    number,
    total,
)
from hbpcompiler.compiler.cost.meter import Meter
from hbpcompiler.compiler.cost.program_cost import FORWARD, RESULTS
from hbpcompiler.compiler.plan.steps import Close, Pull
from hbpcompiler.compiler.routes import alternatives
from hbpcompiler.compiler.trace.graph import N
from tests.selection import few, slow


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.Sigmoid(), nn.Conv2d(4, 6, 3), nn.Flatten(), nn.Linear(96, 5))


def compiled(quantities, samples=4, **options):
    return hbp.compile(network(), quantities=quantities, **options,
                       example_inputs=(torch.zeros(samples, 1, 8, 8), torch.zeros(samples, dtype=torch.long)))


def table(text, title):
    """The rows of one table, as lists of cells; a cell that was wrapped is put together."""
    lines = text[text.index(title):].splitlines()[1:]
    end = next(position for position, line in enumerate(lines) if line.startswith("└"))
    rows = []
    for line in lines[:end]:
        if line.startswith("│"):
            cells = [cell.strip() for cell in line.strip("│").split("│")]
            if any(cells[:4]):
                rows.append(cells)
            else:
                rows[-1] = [f"{above} {cell}".strip() for above, cell in zip(rows[-1], cells, strict=True)]
    return rows


def test_chosen_and_rejected_routes_are_shown_with_their_costs():
    program = compiled(["diag_ggn", "kflr"])
    rows = table(program.explain(128), "How it ends at the parameters")
    weight = [row for row in rows if row[0] == "2.weight"]
    verdicts = {(row[2], row[3]): row[4] for row in weight}
    assert verdicts["diagonal", "Gram over positions"] == "rejected"
    assert verdicts["diagonal", "batched product"] == "rejected: its memory grows with N times the parameter"
    assert verdicts["factor", "symmetric product"] == "chosen"
    assert {row[0] for row in rows} == {name for name, _ in network().named_parameters()}
    for row in rows:
        assert row[4].startswith(("chosen", "rejected"))
        assert "N times" in row[4] or (float(row[5]) > 0 and "N" in row[7])
    for step in program._current().draft.plan.closings():
        chosen = sum(choice.cost.seconds() for choice in step.choices)
        kinds = frozenset().union(*(choice.kinds for choice in step.choices))
        assert all(chosen <= other.cost.seconds() for other in alternatives(step.site, step.choices)
                   if other.kinds == kinds)


def test_the_header_shows_chosen_routes_only():
    head = compiled(["diag_ggn"]).code.split('"""')[1]
    assert "rejected" not in head
    assert "predicted" not in head.lower()


def test_every_step_has_a_cost():
    program = compiled(["diag_h", "variance", "kfac"])
    draft = program._current().draft
    costs, seconds = draft.cost.costs(), draft.cost.seconds(32)
    assert costs.keys() == seconds.keys()
    assert {FORWARD, RESULTS} <= costs.keys()
    for place, cost in costs.items():
        for figure in (cost.multiply_adds, cost.traffic, cost.calls):
            assert sympy.sympify(figure).is_polynomial(N)
            assert number(figure, 64) >= 0
        step = draft.plan.steps[place] if isinstance(place, int) else None
        if isinstance(step, Pull | Close) and step.operation.short == "linear":
            assert number(cost.calls, 64) > 0
    assert program.predicted_seconds(32) == pytest.approx(sum(seconds.values()))
    assert program.predicted_seconds(64) > program.predicted_seconds(32)
    assert "Predicted at N=32" in program.explain(32)


@pytest.mark.parametrize("quantities", [["grad"], ["diag_h", "kflr"], ["batch_l2", "variance"]])
def test_the_count_is_what_a_call_does(quantities, monkeypatch):
    """Multiply-adds and calls of the graph, loops multiplied out, against a real call: of the file as it is read, not
    of what takes oneDNN's place on some processors."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    samples = 7
    program = compiled(quantities, samples)
    draft = program._current().draft
    X, y = torch.randn(samples, 1, 8, 8), torch.zeros(samples, dtype=torch.long)
    with torch.no_grad(), Meter() as meter:
        program.program(program.state, X, y)
    counted = [counts for counts, _ in draft.cost._counted(samples, False).values()]
    assert sum(counts.multiply_adds for counts in counted) == meter.counts.multiply_adds
    assert sum(counts.calls for counts in counted) == meter.counts.calls


def test_polynomials_agree_with_counts():
    draft = compiled(["diag_ggn", "batch_dot"])._current().draft
    whole = total(draft.cost.costs().values())
    for batch in (64, 192, 256):
        counted = [counts for counts, _ in draft.cost._counted(batch, True).values()]
        assert number(whole.multiply_adds, batch) == pytest.approx(sum(counts.multiply_adds for counts in counted))
        moved = sum(counts.traffic + counts.cached for counts in counted)
        assert number(whole.traffic, batch) == pytest.approx(moved)
    assert sympy.degree(whole.multiply_adds, N) == 2  # batch_dot compares all samples with all


def test_a_machine_turns_costs_into_seconds():
    cost = Cost(multiply_adds=1000 * N, traffic=500 * N, memory=7, calls=3, batched=400 * N)
    machine = Machine(600.0, 100.0, 250.0, 0.5)
    assert cost.seconds(2, machine) == pytest.approx(2 + 8 + 4 + 1.5)
    assert (cost + cost).seconds(2, machine) == pytest.approx(2 * cost.seconds(2, machine))
    assert (cost + cost).memory == 7
    assert DEFAULT.batched_per_second == DEFAULT.multiply_adds_per_second


@few(1, "further cases of one kind")
@pytest.mark.parametrize("share", [0.4, 0.55, 0.7, 0.85])
def test_any_budget_is_explained(share):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(30, 40), nn.Sigmoid(), nn.Linear(40, 40), nn.Sigmoid(), nn.Linear(40, 4)).double()
    batch = torch.randn(50, 30, dtype=torch.float64), torch.zeros(50, dtype=torch.long)
    free = hbp.compile(model, quantities=["diag_h"], example_inputs=batch).predicted_memory(50)
    tight = hbp.compile(model, quantities=["diag_h"], example_inputs=batch, memory_budget=int(share * free))
    rows = table(tight.explain(50), "How it ends at the parameters")
    chosen = {row[0] for row in rows if row[4] == "chosen"}
    assert chosen == dict(model.named_parameters()).keys()


@slow("a second or more; shorter ones of its kind stay")
def test_sites_in_chunk_loops_count_all_their_chunks():
    """A budget cuts the columns into chunks; the work stated for them is that of the whole."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(30, 40), nn.Sigmoid(), nn.Linear(40, 40), nn.Sigmoid(), nn.Linear(40, 4)).double()
    batch = torch.randn(50, 30, dtype=torch.float64), torch.zeros(50, dtype=torch.long)
    free = hbp.compile(model, quantities=["diag_h"], example_inputs=batch)
    tight = hbp.compile(model, quantities=["diag_h"], example_inputs=batch,
                        memory_budget=int(0.65 * free.predicted_memory(50)))
    work = []
    for program in (free, tight):
        rows = table(program.explain(50), "How it ends at the parameters")
        work.append([row[6] for row in rows if row[0] == "0.weight" and row[4] == "chosen" and "columns" in row[1]])
    assert "in chunks" in tight.explain(50)
    assert "in chunks" not in free.explain(50)
    assert work[0]
    assert work[0] == work[1]


@slow("a second or more; shorter ones of its kind stay")
def test_limits_that_decided_something_are_shown_and_others_that_were_changed():
    title = "Limits that decided something"
    assert title not in hbp.compile(nn.Linear(3, 2), quantities=["grad"], limits=hbp.Limits(), example_inputs=(
        torch.zeros(2, 3), torch.tensor([0, 1]))).explain()
    shown = {row[0]: row for row in table(compiled(["diag_h"], limits=hbp.Limits(
        recycled_bytes=9000, few_columns=0, all_columns_bytes=0, race_rounds=9)).explain(), title)}
    assert shown["all_columns_bytes"][1:3] == ["0", str(2**28)]
    assert shown["all_columns_bytes"][4] == "all columns in chunks of samples"
    assert shown["all_columns_chunk_bytes"][1:4] == [str(2**25), "", "bytes"]
    assert shown["race_rounds"][1:3] == ["9", "7"]
    assert not shown["race_rounds"][4]
    assert "half_rows" not in shown
    met = {row[0] for row in table(compiled(["diag_h"]).explain(), title)}
    assert met == {"cache_bytes", "one_by_one_bytes", "squaring_speedup"}


def test_large_new_tensors_pay_for_their_pages():
    with Meter() as meter:
        large = torch.empty(2**24, device="meta")
        large.mul_(2)
        small = torch.empty(2**10, device="meta")
    assert meter.counts.fresh == large.nbytes
    paid = meter.counts.seconds(Machine(fresh_bytes_per_second=1e9)) - meter.counts.seconds(Machine())
    assert paid == pytest.approx(large.nbytes * (1e-9 - 1 / DEFAULT.fresh_bytes_per_second))
    assert small.nbytes < large.nbytes
    with Meter(hbp.Limits(recycled_bytes=large.nbytes)) as meter:
        large.square()
    assert meter.counts.fresh == 0

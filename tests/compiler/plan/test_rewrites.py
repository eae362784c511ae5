"""The rewrites of a plan that follow the walk, on the steps of a graph written by hand."""

from dataclasses import replace

import pytest

from hbpcompiler.compiler.cost.figures import Resources
from hbpcompiler.compiler.match.matched import Matched
from hbpcompiler.compiler.plan.compression import is_worth_it
from hbpcompiler.compiler.plan.decided import limits_met
from hbpcompiler.compiler.plan.local import Local, without_local
from hbpcompiler.compiler.plan.sample_chunks import with_sample_chunks
from hbpcompiler.compiler.plan.steps import SampleChunks, Seed, Tail, flat
from hbpcompiler.compiler.plan.tails import with_tails
from hbpcompiler.compiler.plan.walk import Walk
from hbpcompiler.limits import Limits
from hbpcompiler.options import check_options
from hbpcompiler.quantities import closings_for
from tests.compiler.derive.carried import MATCHED, planned


def walked(*quantities):
    asked = check_options(list(quantities), "python", None, 1, None)
    return Walk(MATCHED, frozenset(closings_for(asked.quantities)), asked, Resources()).run()


def resources(**limits):
    return Resources(limits=Limits(**limits))


def names(steps):
    return [(type(own).__name__, getattr(own, "slot", "")) for step in steps for own in flat(step)]


def test_the_walk_ends_at_the_parameters():
    steps = walked("grad")
    assert isinstance(steps[0], Seed)
    assert names(steps) == names(planned("grad").steps)


def test_small_columns_need_no_chunks():
    steps = walked("diag_h")
    assert with_tails(steps, 4, Resources()) == steps
    assert with_sample_chunks(steps, 4, Resources()) == steps


def test_the_rest_of_a_large_pieces_way_becomes_one_tail():
    steps = walked("diag_h")
    made = with_tails(steps, 4, resources(few_columns=0, vector_bytes=1, vector_chunk_bytes=1))
    tails = [step for step in made if isinstance(step, Tail)]
    assert tails
    assert all((tail.samples, tail.columns) == (1, 1) for tail in tails)
    assert sorted(names(made)) == sorted(names(steps))


def test_all_curvature_in_one_loop_over_samples():
    steps = walked("grad", "diag_h")
    made = with_sample_chunks(steps, 4, resources(few_columns=0, all_columns_bytes=0, all_columns_chunk_bytes=1))
    (loop,) = [step for step in made if isinstance(step, SampleChunks)]
    assert loop.samples == 1
    assert sorted(names(made)) == sorted(names(steps))


def test_what_keeps_samples_apart_goes_whole():
    steps = walked("batch_diag_ggn")
    assert with_sample_chunks(steps, 4, resources(few_columns=0, all_columns_bytes=0)) == steps


def test_the_limits_that_decided_are_told():
    plan = planned("grad", "diag_h")
    assert "all_columns_bytes" not in limits_met(plan)
    chunked = with_sample_chunks(plan.steps, 4, resources(few_columns=0, all_columns_bytes=0))
    assert limits_met(replace(plan, steps=tuple(chunked)))["all_columns_bytes"] == ["all columns in chunks of samples"]


@pytest.mark.parametrize(("columns", "size", "largest", "worth"), [(20, 10, 80, True), (19, 10, 80, False),
                                                                   (20, 10, 79, False)])
def test_when_columns_are_compressed(columns, size, largest, worth):
    limits = Limits(compressed_columns=2, compressed_growth=8)
    assert is_worth_it(columns, size, largest, limits) == worth


def test_values_without_an_image_have_no_neighbourhoods():
    assert isinstance(MATCHED, Matched)
    local = Local(MATCHED.rules, MATCHED.static, 4, Resources())
    steps = walked("diag_h")
    assert with_tails(steps, 4, Resources(), (), local) == steps
    assert without_local({}, steps) == {}

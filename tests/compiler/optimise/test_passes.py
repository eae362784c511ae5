"""The list of passes: each has what it needs; whoever breaks a program is named, with those before it."""

from dataclasses import replace

import pytest
import torch

from hbpcompiler.compiler.cost.figures import DEFAULT, ONEDNN
from hbpcompiler.compiler.optimise.passes import (
    OVERWRITTEN,
    PASSES,
    PRODUCTS,
    SHAPES,
    Pass,
    levels_behind,
    optimise,
)
from hbpcompiler.compiler.program.check import BrokenProgramError, Level
from hbpcompiler.compiler.program.writer import Loop
from tests.compiler.optimise.small import calls, program, run, settings, total_of

ARGUMENTS = ((-1, 3), (3,))


def names(passes):
    return [step.name for step in passes]


def test_the_list_is_in_an_order_that_can_be():
    levels = list(levels_behind(PASSES))
    assert levels == sorted(levels)
    assert (levels[0], levels[-1]) == (Level.DERIVED, Level.FINAL)
    assert names(PASSES).index("annotate") == levels.index(Level.SHAPED)


def test_a_pass_that_lacks_what_it_needs_is_named():
    shaping = next(step for step in PASSES if step.name == "annotate")
    with pytest.raises(ValueError, match=r"annotate needs: .*einsums"):
        levels_behind([step for step in PASSES if PRODUCTS not in step.makes])
    with pytest.raises(ValueError, match="drop_neutral needs: of every node"):
        levels_behind([step for step in PASSES if step is not shaping])


def test_nothing_moves_once_values_are_overwritten():
    with pytest.raises(ValueError, match="drop_dead comes after: values may be overwritten"):
        levels_behind([*PASSES, next(step for step in PASSES if step.name == "drop_dead")])


def ran(**chosen):
    """Which passes were run."""
    found = []

    def noted(step):
        def run(graph, given):
            if not hasattr(graph, "noted"):
                found.append(step.name)
            step.run(graph, given)

        return replace(step, run=run)

    optimise(program(lambda writer, x, w: x * w, "x", "w"), settings(*ARGUMENTS, **chosen), [*map(noted, PASSES)])
    return found


def test_conditions_decide_which_passes_are_run():
    optional = {"round_what_columns_meet", "use_channels_last", "multiply_by_onednn"}
    assert ran() == [name for name in names(PASSES) if name not in optional]
    assert set(ran(by_pixels=True)) & optional == {"use_channels_last"}
    assert set(ran(curvature_dtype=torch.bfloat16)) & optional == {"round_what_columns_meet"}
    assert set(ran(machine=ONEDNN)) & optional == {"multiply_by_onednn"}
    assert DEFAULT.linear_per_second <= DEFAULT.multiply_adds_per_second


def test_bodies_come_first_with_their_chunk():
    seen = []
    step = Pass("look", lambda graph, given: seen.append((len(graph.nodes), given.chunk)))
    graph = total_of(lambda part, whole: part.sum(0), chunk=7)
    optimise(graph, settings(*ARGUMENTS), [step])
    (body,) = [node.target.body for node in graph.nodes if isinstance(node.target, Loop)]
    assert seen == [(len(body.nodes), 7), (len(graph.nodes), settings().chunk)]
    seen.clear()
    optimise(graph, settings(*ARGUMENTS), [replace(step, in_loops=False)])
    assert len(seen) == 1


def test_whoever_breaks_a_program_is_named_with_those_before_it():
    def forget(graph, given):
        next(node for node in graph.nodes if node.op == "call_function").meta.clear()

    passes = [*PASSES[:6], Pass("forget", forget), *PASSES[6:]]
    with pytest.raises(BrokenProgramError, match=r"pass forget left a broken program, after share_common_\w+, .*"
                                                 r"drop_dead: %mul .*heading"):
        optimise(program(lambda writer, x, w: x * w, "x", "w"), settings(*ARGUMENTS), passes)
    graph = program(lambda writer, x, w: x * w, "x", "w")
    forget(graph, None)
    with pytest.raises(BrokenProgramError, match="the backward pass left a broken program: %mul"):
        optimise(graph, settings(*ARGUMENTS))


def test_a_pass_that_leaves_a_new_tensor_without_shape_is_named():
    def double(graph, given):
        (product,) = [node for node in graph.nodes if node.op == "call_function"]
        with graph.inserting_after(product):
            added = graph.call_method("neg", (product,))
        added.meta = {"block": None, "step": None}
        product.replace_all_uses_with(added, delete_user_cb=lambda user: user is not added)

    late = names(PASSES).index("write_in_place")
    passes = [*PASSES[:late], Pass("double", double, frozenset({SHAPES})), *PASSES[late:]]
    with pytest.raises(BrokenProgramError, match=r"pass double .*finish_early: %neg .*shape and dtype"):
        optimise(program(lambda writer, x, w: x * w, "x", "w"), settings(*ARGUMENTS), passes)


def test_a_late_read_of_an_overwritten_value_is_caught():
    def write(writer, x, w):
        product = x.unsqueeze(1) * w
        return product * 2, x.sum()

    def late(graph, given):
        product = next(node for node in graph.nodes if node.op == "call_function")
        total = next(node for node in graph.nodes if node.target == "sum")
        total.args = (product,)

    passes = [*PASSES, Pass("late", late, not_after=frozenset(), makes=frozenset({OVERWRITTEN}))]
    with pytest.raises(BrokenProgramError, match=r"pass late .*write_in_place.*: %sum.* reads mul, which was over"):
        optimise(program(write, "x", "w"), settings(*ARGUMENTS), passes)


def test_the_numbers_stay():
    graph = total_of(lambda part, whole: ((part * 1 + part * whole.exp()).unsqueeze(1).squeeze(1) * part).sum(0))
    x, w = torch.randn(5, 3), torch.randn(3)
    before = run(total_of(lambda part, whole: ((part + part * whole.exp()) * part).sum(0)), x, w)
    optimise(graph, settings(*ARGUMENTS))
    assert calls(graph) == ["new_zeros", "exp", "loop", "  mul", "  add", "  mul", "  sum", "  add_", "getitem"]
    torch.testing.assert_close(run(graph, x, w), before)


def test_with_one_look_at_the_end_a_broken_program_is_still_found():
    def forget(graph, given):
        next(node for node in graph.nodes if node.op == "call_function").meta.clear()

    def broken():
        optimise(program(lambda writer, x, w: x * w, "x", "w"), settings(*ARGUMENTS),
                 [*PASSES, Pass("forget", forget, not_after=frozenset())], each=False)

    with pytest.raises(BrokenProgramError, match=r"the passes left a broken program: share_common_\w+, .*forget: %mul"):
        broken()

"""Costs as polynomials in the batch size, and what a machine makes of them."""

import pytest

from hbpcompiler.compiler.cost.figures import Cost, Machine, Resources, chunk_length, number, total
from hbpcompiler.compiler.trace.graph import N

UNIT = Machine(multiply_adds_per_second=1, batched_per_second=1, bytes_per_second=1, seconds_per_call=1,
               kernel_per_second=1)


def test_costs_add_up_but_memory_is_the_largest():
    first = Cost(multiply_adds=3 * N, traffic=N, memory=10 * N, calls=1)
    second = Cost(multiply_adds=N**2, traffic=5, memory=100, calls=2)
    both = first + second
    assert both.multiply_adds == N**2 + 3 * N
    assert both.calls == 3
    assert number(both.memory, 5) == 100
    assert number(both.memory, 50) == 500


def test_nothing_costs_nothing():
    assert total([]).seconds() == 0
    assert total([Cost(3 * N)]).multiply_adds == 3 * N


def test_seconds_of_each_part():
    assert Cost(multiply_adds=7 * N, calls=0).seconds(2, UNIT) == 14
    assert Cost(traffic=7 * N, calls=0).seconds(2, UNIT) == 14
    assert Cost(calls=3).seconds(2, UNIT) == 3


def test_small_products_and_kernels_have_their_own_speed():
    machine = Machine(multiply_adds_per_second=1, batched_per_second=2, kernel_per_second=4, bytes_per_second=1,
                      seconds_per_call=0)
    assert Cost(multiply_adds=8, batched=8).seconds(1, machine) == 4
    assert Cost(multiply_adds=8, kernel=8).seconds(1, machine) == 2
    assert Cost(multiply_adds=8).seconds(1, Machine(multiply_adds_per_second=1, seconds_per_call=0,
                                                    linear_per_second=8)) == 1


def test_what_must_not_be_taken_costs_infinitely_much():
    assert Cost(multiply_adds=float("inf")).seconds() == float("inf")


@pytest.mark.parametrize(("expression", "value"), [(3, 3.0), (2.5, 2.5), (2 * N + 1, 11.0), (N**2, 25.0)])
def test_a_polynomials_value(expression, value):
    assert number(expression, 5) == value


def test_a_chunk_stays_in_cache_and_in_the_memory_for_temporaries():
    cache = Resources().limits.cache_bytes
    assert chunk_length(cache // 4, Resources()) == 4
    assert chunk_length(2 * cache, Resources()) == 1
    assert chunk_length(cache // 4, Resources(temporaries=cache // 2)) == 2
    assert chunk_length(cache // 4, Resources(temporaries=8 * cache)) == 4

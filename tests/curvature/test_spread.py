"""How eigendecompositions are shared out; what ranks do with it is in accumulate/test_ranks."""

import pytest
import torch

import hbpcompiler as hbp
from hbpcompiler.curvature.spread import cost, shares


def test_the_most_expensive_go_first_to_who_has_least_to_do():
    assert shares([1.0, 8.0, 5.0, 4.0], 2) == [0, 0, 1, 1]
    assert shares([3.0], 4) == [0]
    assert shares([], 2) == []
    sizes = torch.randint(1, 500, (60,)).tolist()
    costs = [float(size) ** 3 for size in sizes]
    busy = [0.0] * 3
    for own, owner in zip(costs, shares(costs, 3), strict=True):
        busy[owner] += own
    assert max(busy) <= 4 / 3 * max(sum(costs) / 3, max(costs))
    assert cost(torch.empty(4, 10, 10)) == 4000


def test_a_process_outside_of_the_group(monkeypatch):
    monkeypatch.setattr(torch.distributed, "get_rank", lambda group: -1)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda group: -1)
    with pytest.raises(hbp.InputError, match="not in the group"):
        hbp.curvature({"weight": torch.eye(2)}, {"weight": (2,)}, group=object())

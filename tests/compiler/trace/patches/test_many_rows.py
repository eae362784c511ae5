"""What torch's own code is told of how many rows a mask picks, and what nobody is told."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode, ShapeEnv

from hbpcompiler.compiler.trace.patches.many_rows import shortcuts_not_taken, truth_of_many


def test_what_a_condition_is_for_many_rows():
    environment = ShapeEnv()
    rows, others = environment.create_unbacked_symint(), environment.create_unbacked_symint()
    for condition, truth in ((rows == 1, False), (rows > 5, True), (rows % 2 == 0, None), (rows == others, None)):
        assert truth_of_many(condition.node.expr) is truth


def test_torchs_own_code_is_told_and_the_users_is_not():
    with shortcuts_not_taken():
        mode = FakeTensorMode(shape_env=ShapeEnv())
        with mode:
            x = mode.from_tensor(torch.ones(5, 4))
            rows = x[x[:, 0] > 0]
            assert len(torch.cat([rows, rows[:, 1:]], 1).shape) == 2
            assert rows.roll(1, 1).shape == rows.shape
            asked = [lambda: bool(rows.shape[0] == 1), lambda: bool(rows.shape[0]), lambda: int(rows.shape[0] > 1),
                     lambda: bool(x.sum() > 0), lambda: bool(x.sum().long().item() == 1)]
            for question in asked:
                with pytest.raises(GuardOnDataDependentSymNode):
                    question()
    with mode, pytest.raises(GuardOnDataDependentSymNode):
        rows[:, :3].roll(2, 1)

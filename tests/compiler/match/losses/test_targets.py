"""What a loss demands of its target."""

import pytest
import torch
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.compiler.match.losses.targets import check_targets, loss_checks
from hbpcompiler.compiler.trace.batch import batch_of
from hbpcompiler.compiler.trace.graph import N
from hbpcompiler.errors import InputError, InputTypeError
from tests.hand_made import graph, matched, mlp, operation, parameter, value


def checked(found, *arguments):
    check_targets(loss_checks(matched(found)), found, batch_of(arguments))


def test_a_fitting_target():
    checked(mlp(), torch.zeros(5, 3), torch.zeros(5, 2))


def test_another_dtype():
    with pytest.raises(InputTypeError, match=r"y has dtype .*float64, the model's output has .*float32"):
        checked(mlp(), torch.zeros(5, 3), torch.zeros(5, 2).double())


def classes(*between):
    """x -> linear -> cross entropy of a target that went through `between`."""
    x, w = value("x", N, 3, role="input"), parameter("w", 2, 3)
    y = value("y", N, 1, role="target", dtype=torch.long)
    output, flat = value("output", N, 2), value("flat", N, dtype=torch.long)
    loss = operation("cross_entropy_loss", value("loss"), {
        "weight": None, "reduction": 1, "ignore_index": -100, "label_smoothing": 0.0}, in_loss=True,
        **{"self": output, "target": between[-1].output if between else flat})
    return graph([operation("linear", output, {"bias": None}, input=x, weight=w), *between, loss],
                 state=[w], inputs=[x], targets=[y], outputs=[output])


Y = value("y", N, 1, role="target", dtype=torch.long)


def test_a_reshaped_target_is_found_and_its_values_are_checked():
    squeezed = operation("squeeze", value("flat", N, dtype=torch.long), {"dim": 1}, overload="dim", self=Y)
    found = classes(squeezed)
    (check,) = loss_checks(matched(found))
    assert check.place == 0
    with pytest.raises(InputError, match="2 classes"):
        checked(found, torch.zeros(2, 3), torch.tensor([[0], [2]]))
    checked(found, torch.zeros(2, 3), torch.tensor([[0], [1]]))


def test_a_part_of_a_target_is_not_checked():
    part = operation("select", value("flat", N, dtype=torch.long), {"dim": 1, "index": 0}, overload="int",
                     self=value("y", N, 2, role="target", dtype=torch.long))
    found = classes(part)
    assert loss_checks(matched(found)) == []


@pytest.mark.parametrize("target", [torch.tensor([False, True, True]), torch.tensor([0, 1, 1], dtype=torch.uint8)])
def test_flags_that_the_loss_makes_numbers_of(target):
    """t.double() inside the loss is what it takes; flags themselves it would not."""
    def loss(output, t):
        return nn.functional.binary_cross_entropy_with_logits(output, t.double())

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 1), nn.Flatten(0)).double()
    X = torch.randn(3, 2, dtype=torch.float64)
    expected = torch.autograd.grad(loss(model(X), target), [*model.parameters()])
    torch.testing.assert_close([*hbp.compile(model, loss, ["grad"])(X, target).grad.values()], [*expected])

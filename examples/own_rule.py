"""An operation that the library does not know, and the one file that makes every quantity work for it.

    python examples/own_rule.py
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import hbpcompiler as hbp
from hbpcompiler.reference import kflr, reference, relative_error

RULE = Path(__file__).with_name("squash_rule.py")
PLAIN = [name for name, quantity in hbp.QUANTITIES.items() if not quantity.arguments]
"""What a call of (X, y) alone gives."""
BRUTE_FORCE = ["grad", "batch_grad", "batch_l2", "second_moment", "variance", "diag_ggn", "diag_h"]
TOLERANCE = 1e-8


@torch.library.custom_op("mylib::squash", mutates_args=())
def squash(self: Tensor) -> Tensor:
    """Bounded like a hyperbolic tangent, without exponentials: x / sqrt(1 + x^2)."""
    return self * (1 + self.square()).rsqrt()


@squash.register_fake
def _(self: Tensor) -> Tensor:
    return torch.empty_like(self)


def keep(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def backward(ctx: Any, gradient: Tensor) -> Tensor:
    (x,) = ctx.saved_tensors
    return gradient * (1 + x.square()) ** -1.5


squash.register_autograd(backward, setup_context=keep)  # for the comparison with autograd only


class Squash(nn.Module):
    """The operation as a layer."""

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = torch.ops.mylib.squash(x)
        return result


def main() -> int:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), Squash(), nn.Linear(8, 6), Squash(), nn.Linear(6, 3)).double()
    x, y = torch.randn(10, 5, dtype=torch.float64), torch.randint(3, (10,))

    print("Without it there is no rule, and torch's own derivatives of it are taken, which is slower:\n")
    without = hbp.compile(model, quantities=["diag_h"], example_inputs=(x, y))
    print(next(line for line in without.explain().splitlines() if line.startswith("No rule")))

    print(f"\nWith {RULE.name}:\n\n{RULE.read_text()}")
    compiled = hbp.compile(model, quantities=PLAIN, rules=[RULE])
    result = compiled(x, y)
    loss, worst = nn.CrossEntropyLoss(), 0.0
    for quantity in BRUTE_FORCE:
        expected = reference(model, loss, (x,), y, quantity)
        worst = max(worst, *(relative_error(result[quantity][name], value) for name, value in expected.items()))
    for name, (a, b) in kflr(model, loss, (x,), y).items():
        found = result.kflr[name]
        worst = max(worst, relative_error(found.B, b), 0.0 if a is None else relative_error(found.A, a))
    print(f"Largest relative error against brute-force autograd: {worst:.1e}")
    print(f"Also computed: {', '.join(name for name in result if name not in (*BRUTE_FORCE, 'kflr'))}")
    return int(worst > TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())

"""The loss where none is given."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn


class DefaultLoss(nn.CrossEntropyLoss):
    """nn.CrossEntropyLoss(), which is zero for one output whatever the target: a loss that somebody forgot."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        classes: object = input.shape[1] if isinstance(input, Tensor) and input.dim() > 1 else None
        if isinstance(classes, int) and classes == 1:  # no symbol of a trace, which a comparison would fix
            raise ValueError("no loss was given, so that it is nn.CrossEntropyLoss(), which is zero for a single "
                             "class; pass loss=nn.MSELoss() for a regression, loss=nn.BCEWithLogitsLoss() for two "
                             "classes")
        return super().forward(input, target)


def given_loss(loss: Callable[..., Tensor] | None) -> Callable[..., Tensor]:
    """The loss, or the one for None."""
    return DefaultLoss() if loss is None else loss

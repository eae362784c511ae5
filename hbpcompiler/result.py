"""What a call returns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from hbpcompiler.changes import Snapshot
from hbpcompiler.quantities import PARAMETER, QUANTITIES
from hbpcompiler.values import Stored, Values


class Result:
    """Loss, output and every quantity asked for, as attributes or items.

    `loss`: the scalar loss L. `output`: what the model returned. Each quantity is a dict from parameter name (as
    in `model.named_parameters()`), or from the name of a group of parameters, to a tensor or named tuple, or one
    tensor where it is of the whole batch (batch_loss); docs/quantities.md gives values and shapes.
    """

    def __init__(self, raw: Any, output: Any, quantities: tuple[str, ...], model: nn.Module,
                 meetings: Mapping[str, Any] | None = None, joint_biases: Mapping[str, str] | None = None,
                 stored: Mapping[str, Stored] | None = None, reduction: str = "") -> None:
        self.stored: Mapping[str, Stored] = dict(stored or {})
        """The parameters as `hbp.curvature` has to know them, by name; every quantity's dict has them too."""
        values = {name: getattr(raw, name) for name in quantities}
        self._values = {name: Values(held, name, self.stored) if isinstance(held, Mapping) else held
                        for name, held in values.items()}
        self._model = model
        self.meetings = meetings or {}
        """For `block_product`: the plan's closing at which the kept pieces meet each parameter."""
        self.joint_biases: Mapping[str, str] = dict(joint_biases or {})
        """With `joint_bias=True`: by a weight's name that of the bias whose block is in the weight's. In the Kronecker
        factors of such a weight, [out, in], A is [in + 1, in + 1], the bias is its last input feature and has no entry
        of its own."""
        self.reduction = reduction
        """Of the loss: "mean", L = (1/N) sum_n l_n; "sum", L = sum_n l_n; "" if it is neither: l_n has no scale."""
        self._operands = Snapshot(self._of_blocks())
        self.loss: Tensor = raw.loss
        self.output = output

    def _of_blocks(self) -> dict[str, Tensor]:
        """What `block_product` reads that may be the batch's own memory."""
        return {name: kept.operand for name, kept in self._values.get("block", {}).items()
                if isinstance(kept.operand, Tensor)}

    def changed_blocks(self) -> list[str]:
        """The parameters whose block reads numbers that have changed since the call."""
        return self._operands.changed(self._of_blocks())

    def is_of(self, model: nn.Module) -> bool:
        """Whether this is a result of that model."""
        return self._model is model

    def __getstate__(self) -> dict[str, Any]:
        """Without what belongs to the program that made it, which `block_product` reads."""
        return {**self.__dict__, "meetings": {}}

    @property
    def quantities(self) -> tuple[str, ...]:
        """Names of the quantities in this result."""
        return tuple(self._values)

    def __getattr__(self, name: str) -> Any:
        values = self.__dict__.get("_values", {})
        if name in values:
            return values[name]
        raise AttributeError(f"this program did not compute '{name}'; it has {', '.join(values)}. "
                             "Name it in hbp.compile(..., quantities=[...])")

    def __getitem__(self, name: str) -> Any:
        if name not in self._values:
            raise KeyError(f"{name}: this program computes {', '.join(self._values)}")
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def keys(self) -> tuple[str, ...]:
        """Names of the quantities, with which `dict(result)` and `**result` have them."""
        return self.quantities

    def __contains__(self, name: object) -> bool:
        return name in self._values

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self._values]

    def __repr__(self) -> str:
        return f"Result(loss={self.loss.item():.6g}, quantities={list(self._values)})"

    def to_parameters(self) -> None:
        """Set `p.grad`, `p.diag_h`, ... on the model's parameters, for each quantity that each of them has."""
        parameters = dict(self._model.named_parameters())
        for quantity, values in self._values.items():
            for name, value in values.items() if QUANTITIES[quantity].per == PARAMETER else ():
                setattr(parameters[name], quantity, value)

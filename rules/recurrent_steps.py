"""The steps of recurrent layers over a sequence, one layer and one direction as one operation with a loop inside.

    lstm_steps(given, through, weight, bias, hidden, memory)    h_t of all steps [N, T, H], and the last c_T
    gru_steps(given, through, weight, bias, hidden)             h_t of all steps
    rnn_steps(given, through, weight, bias, hidden, relu)       h_t of all steps

`given` [N, T, gates] is each step's part from the input, `hidden` and `memory` are h_0 and c_0, zeros if None. The loop
adds weight h_{t-1} + bias, where both are constants. `through` equals that, for all steps; nobody reads its value, but
columns leave by it, those at weight h_{t-1} + bias of all steps. So it may be a linear layer over positions, and weight
and bias are trained as that layer's are (see `recurrent`). Its curvature would travel in the loop; where that is asked
for, the steps are written out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from hbpcompiler.rule import (
    PIECES,
    Case,
    Op,
    Rule,
    Tensor,
    first_state,
    gru_steps,
    gru_steps_back,
    lstm_steps,
    lstm_steps_back,
    rnn_steps,
    rnn_steps_back,
    vjp,
)
from hbpcompiler.rule.decomposition import Decomposition

from .shared.recurrent_cells import Cell, State, gru_cell, lstm_cell, relu_cell, run, tanh_cell

# -- the operations ---------------------------------------------------------------------------------------------------


def steps(cell: Cell, given: Tensor, through: Tensor | None, weight: Tensor,
          bias: Tensor | None, *state: Tensor | None) -> tuple[Tensor, State]:
    """What the loop computes, step by step; `through` adds nothing but its derivative."""

    def heard(hidden: Tensor, t: int) -> Tensor:
        own = F.linear(hidden, weight, bias)
        return own if through is None else own + (through[:, t] - through[:, t].detach())

    return run(cell, given, heard, tuple(first_state(part, given, weight) for part in state))


def lstm_pieces(given: Tensor, through: Tensor | None, weight: Tensor, bias: Tensor | None, hidden: Tensor | None,
                memory: Tensor | None) -> tuple[Tensor, Tensor]:
    outputs, (_, last) = steps(lstm_cell, given, through, weight, bias, hidden, memory)
    return outputs, last.clone()


def gru_pieces(given: Tensor, through: Tensor | None, weight: Tensor, bias: Tensor | None,
               hidden: Tensor | None) -> Tensor:
    return steps(gru_cell, given, through, weight, bias, hidden)[0]


def rnn_pieces(given: Tensor, through: Tensor | None, weight: Tensor, bias: Tensor | None, hidden: Tensor | None,
               relu: bool) -> Tensor:
    return steps(relu_cell if relu else tanh_cell, given, through, weight, bias, hidden)[0]


def like_outputs(given: Tensor, weight: Tensor) -> Tensor:
    """Of the shape [N, T, H], without values."""
    return given.new_empty((given.shape[0], given.shape[1], weight.shape[1]))


def like_last(given: Tensor, weight: Tensor) -> Tensor:
    """Of the shape [N, H]."""
    return given.new_empty((given.shape[0], weight.shape[1]))


def register(name: str, function: Callable[..., Any], arguments: str, results: str,
             fake: Callable[..., Any]) -> None:
    """An operation of torch's, with derivatives by its own pieces."""
    operation = torch.library.custom_op(f"hbpcompiler::{name}", function, mutates_args=(),
                                        schema=f"({arguments}) -> {results}")
    operation.register_fake(fake)

    def keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.given = inputs

    def back(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        places = [i for i, item in enumerate(ctx.given) if isinstance(item, Tensor)]

        def joined(*tensors: Tensor) -> Tensor:
            whole = list(ctx.given)
            for place, tensor in zip(places, tensors, strict=True):
                whole[place] = tensor
            found = function(*whole)
            return torch.cat([found[0], found[1].unsqueeze(1)], 1) if isinstance(found, tuple) else found

        column = torch.cat([gradients[0], gradients[1].unsqueeze(1)], 1) if len(gradients) > 1 else gradients[0]
        pulled = dict(zip(places, vjp(joined, *[ctx.given[i] for i in places])[1](column), strict=True))
        return tuple(pulled.get(i) for i in range(len(ctx.given)))

    operation.register_autograd(back, setup_context=keep)


COMMON = "Tensor given, Tensor? through, Tensor weight, Tensor? bias, Tensor? hidden"
register("lstm_steps", lstm_pieces, f"{COMMON}, Tensor? memory", "(Tensor, Tensor)",
         lambda given, through, weight, bias, hidden, memory: (like_outputs(given, weight), like_last(given, weight)))
register("gru_steps", gru_pieces, COMMON, "Tensor",
         lambda given, through, weight, bias, hidden: like_outputs(given, weight))
register("rnn_steps", rnn_pieces, f"{COMMON}, bool relu", "Tensor",
         lambda given, through, weight, bias, hidden, relu: like_outputs(given, weight))

# -- their rules ------------------------------------------------------------------------------------------------------


def lstm_forward(op: Op) -> tuple[Tensor, dict[str, Tensor]]:
    outputs, cells, gates = lstm_steps(op.given, op.weight, op.bias, op.hidden, op.memory)
    return (cells[:, -1] if op.index else outputs), {"cells": cells, "gates": gates}


def lstm_back(op: Op, columns: Tensor) -> tuple[Tensor, ...]:
    """Columns at given (and through), h_0 and c_0; those at the last c_T are the second result's."""
    last = columns if op.index else None
    if op.index:
        shape = op.shape("given")[0], op.shape("weight")[1]
        columns = columns.new_zeros(1).expand(columns.shape[0], columns.shape[1], *shape)
    at_sums, at_hidden, at_memory = lstm_steps_back(columns, last, op.gates, op.cells, op.memory, op.weight)
    return at_sums, at_sums, at_hidden, at_memory


def gru_forward(op: Op) -> tuple[Tensor, dict[str, Tensor]]:
    outputs, gates, inner = gru_steps(op.given, op.weight, op.bias, op.hidden)
    return outputs, {"gates": gates, "inner": inner}


def gru_back(op: Op, columns: Tensor) -> tuple[Tensor, ...]:
    return gru_steps_back(columns, op.gates, op.inner, op.output, op.hidden, op.weight)


def rnn_forward(op: Op) -> Tensor:
    return rnn_steps(op.given, op.weight, op.bias, op.hidden, op.relu)


def rnn_back(op: Op, columns: Tensor) -> tuple[Tensor, ...]:
    slopes = (op.output > 0).type_as(op.output) if op.relu else 1 - op.output.square()
    at_sums, at_hidden = rnn_steps_back(columns, slopes, op.weight)
    return at_sums, at_sums, at_hidden


def sent_to(back: Callable[[Op, Tensor], tuple[Tensor, ...]], place: int) -> Callable[[Op, Tensor], Tensor]:
    """The part of what goes back that is one argument's; all parts come of one call."""
    return lambda op, columns: back(op, columns)[place]


def refuse(op: Op) -> str | None:
    if not all(op.has_samples(name) for name in ("given", "through", "hidden", "memory") if op.has(name)):
        return "its input and its first state must begin with the sample axis; expand the one that does not"
    return None


def cases(gates: int, *more: str, **attributes: bool) -> list[Case]:
    """Of 3 steps with a bias and a first state, and of 1 without; each result."""
    found = []
    for length, width, whole in ((3, 2, True), (1, 3, False)):
        sums = (length, gates * width)
        shapes: dict[str, tuple[int, ...]] = {"given": sums, "through": sums, "weight": (gates * width, width)}
        if whole:
            states: dict[str, tuple[int, ...]] = dict.fromkeys(("hidden", *more), (width,))
            shapes |= {"bias": (gates * width,), **states}
        batched = ("given", "through", "hidden", *more)
        found += [Case(shapes, attributes, batched, index=index) for index in range(1 + len(more))]
    return found


FORMULA = "from the last step to the first: S at h_t to the gates of step t, and by weight on to h_{t-1}"
LSTM_STEPS = Rule(
    operations=["hbpcompiler.lstm_steps"],
    forward=lstm_forward,
    jac_t={name: sent_to(lstm_back, place) for place, name in enumerate(("given", "through", "hidden", "memory"))},
    residual=PIECES,
    formula=FORMULA,
    refuse=refuse,
    cases=cases(4, "memory"),
)
GRU_STEPS = Rule(
    operations=["hbpcompiler.gru_steps"],
    forward=gru_forward,
    jac_t={name: sent_to(gru_back, place) for place, name in enumerate(("given", "through", "hidden"))},
    residual=PIECES,
    formula=FORMULA,
    refuse=refuse,
    cases=cases(3),
)
RNN_STEPS = Rule(
    operations=["hbpcompiler.rnn_steps"],
    forward=rnn_forward,
    jac_t={name: sent_to(rnn_back, place) for place, name in enumerate(("given", "through", "hidden"))},
    residual=PIECES,
    formula=FORMULA,
    refuse=refuse,
    cases=[case for relu in (False, True) for case in cases(1, relu=relu)],
)
IN_PIECES = [
    Decomposition(["hbpcompiler.lstm_steps"], lstm_pieces),
    Decomposition(["hbpcompiler.gru_steps"], gru_pieces),
    Decomposition(["hbpcompiler.rnn_steps"], rnn_pieces),
]

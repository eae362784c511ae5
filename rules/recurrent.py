"""nn.RNN, nn.GRU and nn.LSTM: each layer in one direction is an operation, whose steps are a loop in the program.

    given   = W_ih x + b_ih                          a linear layer over positions
    outputs = steps(given, through, W_hh, b_hh, h_0)   the loop (see `recurrent_steps`), W_hh and b_hh as constants
    through = W_hh h_{t-1} + b_hh, for all t           a linear layer over positions, the hidden states as constants

In the sum over steps of what reaches W_hh h_{t-1} + b_hh, times h_{t-1}, are all first derivatives in W_hh. Second ones
are more, as h_{t-1} depends on W_hh too: where curvature inside the model is asked for, the steps are written out, and
each weight has one use per step. So they are with a projection (proj_size), and where dtypes differ (autocast).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import PackedSequence

from hbpcompiler.rule import ModuleRule, Tensor, first_state, shifted
from hbpcompiler.rule.decomposition import Decomposition

from .recurrent_steps import gru_pieces, like_last, like_outputs, lstm_pieces, register, rnn_pieces
from .shared.recurrent_cells import Cell, State, gru_cell, lstm_cell, relu_cell, run, tanh_cell

PACKED = ("packed sequences have no axis of samples; pass the padded tensor, and take the last valid step of each "
          "sample by output.gather(1, (lengths - 1).view(-1, 1, 1).expand(-1, 1, output.shape[2]))")

# -- a layer in one direction -----------------------------------------------------------------------------------------


def in_a_loop(steps: Callable[..., Any]) -> Callable[..., Any]:
    """A layer as above. The hidden states that `through` is made of come of the same loop: a program has it once."""

    def layer(given: Tensor, weight: Tensor, bias: Tensor | None, hidden: Tensor | None, *more: Any) -> Any:
        constants = weight.detach(), None if bias is None else bias.detach()
        alone = steps(given, None, *constants, hidden, *more)
        outputs = alone[0] if isinstance(alone, tuple) else alone
        before = shifted(outputs, hidden).detach()
        return steps(given, F.linear(before, weight, bias), *constants, hidden, *more)

    return layer


def step_by_step(function: Callable[..., Any]) -> Callable[..., Any]:
    """A layer with each step written out."""

    def layer(given: Tensor, *others: Any) -> Any:
        return function(given, None, *others)

    return layer


ARGUMENTS = "Tensor given, Tensor weight, Tensor? bias, Tensor? hidden"
register("lstm", step_by_step(lstm_pieces), f"{ARGUMENTS}, Tensor? memory", "(Tensor, Tensor)",
         lambda given, weight, bias, hidden, memory: (like_outputs(given, weight), like_last(given, weight)))
register("gru", step_by_step(gru_pieces), ARGUMENTS, "Tensor",
         lambda given, weight, bias, hidden: like_outputs(given, weight))
register("rnn", step_by_step(rnn_pieces), f"{ARGUMENTS}, bool relu", "Tensor",
         lambda given, weight, bias, hidden, relu: like_outputs(given, weight))
OPERATIONS = torch.ops.hbpcompiler
LAYERS = [
    Decomposition(["hbpcompiler.lstm"], in_a_loop(OPERATIONS.lstm_steps), curved=step_by_step(lstm_pieces)),
    Decomposition(["hbpcompiler.gru"], in_a_loop(OPERATIONS.gru_steps), curved=step_by_step(gru_pieces)),
    Decomposition(["hbpcompiler.rnn"], in_a_loop(OPERATIONS.rnn_steps), curved=step_by_step(rnn_pieces)),
]

# -- the modules ------------------------------------------------------------------------------------------------------

First = tuple[Tensor | None, ...]
"""The first state; None: zeros."""
Layer = Callable[[Any, Tensor, Tensor, Tensor | None, First], tuple[Tensor, State]]
"""(module, input part [N, T, gates], weight and bias of the hidden part, first state) -> outputs and last state."""


def lstm_layer(module: Any, given: Tensor, weight: Tensor, bias: Tensor | None, state: First) -> tuple[Tensor, State]:
    outputs, memory = OPERATIONS.lstm(given, weight, bias, *state)
    return outputs, (outputs.select(1, -1), memory)


def gru_layer(module: Any, given: Tensor, weight: Tensor, bias: Tensor | None, state: First) -> tuple[Tensor, State]:
    outputs = OPERATIONS.gru(given, weight, bias, *state)
    return outputs, (outputs.select(1, -1),)


def rnn_layer(module: Any, given: Tensor, weight: Tensor, bias: Tensor | None, state: First) -> tuple[Tensor, State]:
    outputs = OPERATIONS.rnn(given, weight, bias, *state, module.nonlinearity == "relu")
    return outputs, (outputs.select(1, -1),)


def refuse(module: nn.RNNBase) -> str | None:
    if module.dropout and module.training and module.num_layers > 1:
        return "dropout between layers is not supported in train mode; use dropout=0.0, or call eval() on that module"
    return None


def first_states(module: Any, hx: Any, states: int) -> list[First]:
    """The state that each layer and direction starts from: slices of `hx`, [layers * directions, N, H]; None: zeros."""
    count = module.num_layers * (2 if module.bidirectional else 1)
    if hx is None:
        zeros: First = (None,) * states
        return [zeros] * count
    given = hx if states > 1 else (hx,)
    return [tuple(state.select(0, place) for state in given) for place in range(count)]


def cell_of(module: Any) -> Cell:
    """One step of it."""
    if isinstance(module, nn.LSTM):
        return lstm_cell
    if isinstance(module, nn.GRU):
        return gru_cell
    return relu_cell if module.nonlinearity == "relu" else tanh_cell


def direction(module: Any, layer: Layer, x: Tensor, state: First, suffix: str) -> tuple[Tensor, State]:
    """One layer over [N, T, features], backwards if its weights are called so: outputs [N, T, H] and the last state."""
    weights = [getattr(module, f"weight_{kind}_{suffix}") for kind in ("ih", "hh")]
    biases = [getattr(module, f"bias_{kind}_{suffix}") if module.bias else None for kind in ("ih", "hh")]
    backwards = suffix.endswith("reverse")
    given = F.linear(x.flip(1) if backwards else x, weights[0], biases[0])
    projection = getattr(module, f"weight_hr_{suffix}") if module.proj_size else None
    dtypes = {tensor.dtype for tensor in (given, weights[1], *state) if tensor is not None}
    if projection is not None or len(dtypes) > 1:
        sizes = weights[1], weights[1] if projection is None else projection
        outputs, last = run(cell_of(module), given, lambda hidden, t: F.linear(hidden, weights[1], biases[1]),
                            tuple(first_state(part, x, size) for part, size in zip(state, sizes, strict=False)),
                            lambda hidden: hidden if projection is None else F.linear(hidden, projection))
    else:
        outputs, last = layer(module, given, weights[1], biases[1], state)
    return outputs.flip(1) if backwards else outputs, last


def traced(layer: Layer, states: int) -> Callable[..., tuple[Tensor, Any]]:
    """The module's forward on [N, T, features], or [T, N, features] without batch_first, and a first state or zeros."""

    def forward(module: Any, x: Any, hx: Any = None) -> tuple[Tensor, Any]:
        if isinstance(x, PackedSequence):
            raise NotImplementedError(PACKED)
        if x.dim() == 2:
            raise NotImplementedError("one sequence [T, features] has no axis of samples; pass [N, T, features] with "
                                      "batch_first=True, or [T, N, features]")
        x = x if module.batch_first else x.transpose(0, 1)
        before = first_states(module, hx, states)
        last: list[State] = []
        for number in range(module.num_layers):
            ways = []
            for ending in ("", "_reverse")[: 2 if module.bidirectional else 1]:
                output, state = direction(module, layer, x, before[len(last)], f"l{number}{ending}")
                ways.append(output)
                last.append(state)
            x = torch.cat(ways, 2) if len(ways) > 1 else ways[0]
        final = tuple(torch.stack([state[i] for state in last], 0) for i in range(states))
        return x if module.batch_first else x.transpose(0, 1), final if states > 1 else final[0]

    return forward


RNN = ModuleRule(nn.RNN, traced(rnn_layer, 1), refuse)
GRU = ModuleRule(nn.GRU, traced(gru_layer, 1), refuse)
LSTM = ModuleRule(nn.LSTM, traced(lstm_layer, 2), refuse)

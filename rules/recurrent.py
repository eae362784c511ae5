"""nn.RNN, nn.GRU and nn.LSTM, unrolled over time: each weight has one use per step."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import PackedSequence

from hbpcompiler.rule import ModuleRule, Tensor

State = tuple[Tensor, ...]
"""The hidden state, [N, H] each: (h,) or, for an LSTM, (h, c)."""
Cell = Callable[[Any, Tensor, Tensor, State], State]
"""(module, input part [N, gates], hidden part [N, gates], state) -> next state."""
PACKED = ("packed sequences have no axis of samples; pass the padded tensor, and take the last valid step of each "
          "sample by output.gather(1, (lengths - 1).view(-1, 1, 1).expand(-1, 1, output.shape[2]))")


def refuse(module: nn.RNNBase) -> str | None:
    if module.dropout and module.training and module.num_layers > 1:
        return "dropout between layers is not supported in train mode; use dropout=0.0"
    return None


def rnn_cell(module: Any, given: Tensor, hidden: Tensor, state: State) -> State:
    total = given + hidden
    return (torch.tanh(total) if module.nonlinearity == "tanh" else torch.relu(total),)


def gru_cell(module: Any, given: Tensor, hidden: Tensor, state: State) -> State:
    given_reset, given_update, given_new = given.chunk(3, 1)
    hidden_reset, hidden_update, hidden_new = hidden.chunk(3, 1)
    reset = torch.sigmoid(given_reset + hidden_reset)
    update = torch.sigmoid(given_update + hidden_update)
    new = torch.tanh(given_new + reset * hidden_new)
    return (new + update * (state[0] - new),)


def lstm_cell(module: Any, given: Tensor, hidden: Tensor, state: State) -> State:
    enter, forget, cell, leave = (given + hidden).chunk(4, 1)
    memory = torch.sigmoid(forget) * state[1] + torch.sigmoid(enter) * torch.tanh(cell)
    return torch.sigmoid(leave) * torch.tanh(memory), memory


def first_states(module: Any, x: Tensor, hx: Any, states: int) -> list[State]:
    """The state that each layer and direction starts from: slices of `hx`, [layers * directions, N, H], or zeros."""
    count = module.num_layers * (2 if module.bidirectional else 1)
    if hx is None:
        hidden = x.new_zeros(x.shape[0], module.proj_size or module.hidden_size)
        memory = x.new_zeros(x.shape[0], module.hidden_size)
        return [(hidden, memory)[:states]] * count
    given = hx if states > 1 else (hx,)
    return [tuple(state.select(0, place) for state in given) for place in range(count)]


def direction(module: Any, cell: Cell, x: Tensor, state: State, suffix: str) -> tuple[Tensor, State]:
    """One layer over [N, T, features], backwards if its weights are called so: outputs [N, T, H] and the last state."""
    weights = [getattr(module, f"weight_{kind}_{suffix}") for kind in ("ih", "hh")]
    biases = [getattr(module, f"bias_{kind}_{suffix}") if module.bias else None for kind in ("ih", "hh")]
    projection = getattr(module, f"weight_hr_{suffix}") if module.proj_size else None
    backwards = suffix.endswith("reverse")
    outputs = []
    for t in reversed(range(x.shape[1])) if backwards else range(x.shape[1]):
        given = F.linear(x.select(1, t), weights[0], biases[0])
        state = cell(module, given, F.linear(state[0], weights[1], biases[1]), state)
        if projection is not None:
            state = (F.linear(state[0], projection), *state[1:])
        outputs.append(state[0])
    return torch.stack(outputs[::-1] if backwards else outputs, 1), state


def unrolled(cell: Cell, states: int) -> Callable[..., tuple[Tensor, Any]]:
    """The module's forward on [N, T, features], or [T, N, features] without batch_first, and a first state or zeros."""

    def forward(module: Any, x: Any, hx: Any = None) -> tuple[Tensor, Any]:
        if isinstance(x, PackedSequence):
            raise NotImplementedError(PACKED)
        if x.dim() == 2:
            raise NotImplementedError("one sequence [T, features] has no axis of samples; pass [N, T, features] with "
                                      "batch_first=True, or [T, N, features]")
        x = x if module.batch_first else x.transpose(0, 1)
        before = first_states(module, x, hx, states)
        last: list[State] = []
        for layer in range(module.num_layers):
            ways = []
            for ending in ("", "_reverse")[: 2 if module.bidirectional else 1]:
                output, state = direction(module, cell, x, before[len(last)], f"l{layer}{ending}")
                ways.append(output)
                last.append(state)
            x = torch.cat(ways, 2) if len(ways) > 1 else ways[0]
        final = tuple(torch.stack([state[i] for state in last], 0) for i in range(states))
        return x if module.batch_first else x.transpose(0, 1), final if states > 1 else final[0]

    return forward


RNN = ModuleRule(nn.RNN, unrolled(rnn_cell, 1), refuse)
GRU = ModuleRule(nn.GRU, unrolled(gru_cell, 1), refuse)
LSTM = ModuleRule(nn.LSTM, unrolled(lstm_cell, 2), refuse)

"""One step of an RNN, a GRU and an LSTM, and all steps of a sequence one after the other."""

from __future__ import annotations

from collections.abc import Callable

import torch

from hbpcompiler.rule import Tensor

State = tuple[Tensor, ...]
"""The hidden state, [N, H] each: (h,) or, for an LSTM, (h, c)."""
Cell = Callable[[Tensor, Tensor, State], State]
"""(input part [N, gates], hidden part [N, gates], state) -> next state."""


def tanh_cell(given: Tensor, heard: Tensor, state: State) -> State:
    return (torch.tanh(given + heard),)


def relu_cell(given: Tensor, heard: Tensor, state: State) -> State:
    return (torch.relu(given + heard),)


def gru_cell(given: Tensor, heard: Tensor, state: State) -> State:
    given_reset, given_update, given_new = given.chunk(3, 1)
    heard_reset, heard_update, heard_new = heard.chunk(3, 1)
    reset = torch.sigmoid(given_reset + heard_reset)
    update = torch.sigmoid(given_update + heard_update)
    new = torch.tanh(given_new + reset * heard_new)
    return (new + update * (state[0] - new),)


def lstm_cell(given: Tensor, heard: Tensor, state: State) -> State:
    enter, forget, cell, leave = (given + heard).chunk(4, 1)
    memory = torch.sigmoid(forget) * state[1] + torch.sigmoid(enter) * torch.tanh(cell)
    return torch.sigmoid(leave) * torch.tanh(memory), memory


def run(cell: Cell, given: Tensor, heard: Callable[[Tensor, int], Tensor], state: State,
        shown: Callable[[Tensor], Tensor] = lambda hidden: hidden) -> tuple[Tensor, State]:
    """The hidden states of all steps, [N, T, H], and the last state. `given` [N, T, gates] are the input's parts,
    `heard(h, t)` is the hidden part of step t, `shown` what a step makes of its hidden state for all that reads it."""
    outputs = []
    for t in range(given.shape[1]):
        state = cell(given.select(1, t), heard(state[0], t), state)
        state = (shown(state[0]), *state[1:])
        outputs.append(state[0])
    return torch.stack(outputs, 1), state

"""Recurrences over the steps of a sequence, forwards and backwards, as idioms: loops in generated files (see `idioms`).

All steps lie in axis 1 of [N, T, features]. `given` is what a step gets from the input, for all steps at once; what it
gets from the step before is weight h + bias. The loops backwards take any number of columns [N, K, T, H], from the last
step to the first, and give columns of sums in front of the nonlinearities: [N, K, T, gates]. First states that
are None are zeros. (Optional[...] is what TorchScript reads; a range with a step is one whose rounds are alike, so that
predictions of memory run two of them.)
"""

from __future__ import annotations

from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor

from hbpcompiler.rule.idioms import idiom


@idiom
def first_state(state: Optional[Tensor], given: Tensor, weight: Tensor) -> Tensor:  # noqa: UP045
    """[N, H]: this, or zeros."""
    return given.new_zeros((given.shape[0], weight.shape[1])) if state is None else state


@idiom
def shifted(states: Tensor, first: Optional[Tensor]) -> Tensor:  # noqa: UP045
    """The states before each step, of those after each, [N, T, H]."""
    if first is None:
        return F.pad(states[:, :-1], [0, 0, 1, 0])
    return torch.cat([first.unsqueeze(1), states[:, :-1]], 1)


@idiom
def rnn_steps(given: Tensor, weight: Tensor, bias: Optional[Tensor], hidden: Optional[Tensor],  # noqa: UP045
              relu: bool) -> Tensor:
    """h_t = tanh (or relu) of given_t + weight h_{t-1} + bias, for all t: [N, T, H]."""
    outputs = given.clone() if bias is None else given + bias
    before = first_state(hidden, given, weight)
    for t in range(0, given.shape[1], 1):
        now = outputs[:, t].addmm_(before, weight.t())
        before = now.relu_() if relu else now.tanh_()
    return outputs


@idiom
def rnn_steps_back(columns: Tensor, slopes: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Columns at h_t, all t, back to the sums in front of the nonlinearity, whose slopes are [N, T, H]; and to h_0."""
    made, at_hidden = torch.empty_like(columns), torch.zeros_like(columns[:, :, 0])
    for t in range(columns.shape[2] - 1, -1, -1):
        at_sum = (at_hidden + columns[:, :, t]) * slopes[:, t].unsqueeze(1)
        made[:, :, t] = at_sum
        at_hidden = at_sum @ weight
    return made, at_hidden


@idiom
def lstm_steps(given: Tensor, weight: Tensor, bias: Optional[Tensor], hidden: Optional[Tensor],  # noqa: UP045
               memory: Optional[Tensor]) -> tuple[Tensor, Tensor, Tensor]:  # noqa: UP045
    """h_t and c_t of all steps, [N, T, H], and the gates i, f, g, o, [N, T, 4 H].

    c_t = f c_{t-1} + i g, h_t = o tanh(c_t); i, f and o are sigmoids, g is tanh, of the parts of
    given_t + weight h_{t-1} + bias.
    """
    width = weight.shape[1]
    gates = given.clone() if bias is None else given + bias
    outputs = given.new_empty((given.shape[0], given.shape[1], width))
    cells = torch.empty_like(outputs)
    before, cell = first_state(hidden, given, weight), first_state(memory, given, weight)
    for t in range(0, given.shape[1], 1):
        now = gates[:, t].addmm_(before, weight.t())
        now[:, : 2 * width].sigmoid_()
        now[:, 2 * width : 3 * width].tanh_()
        now[:, 3 * width :].sigmoid_()
        enter, forget, new, leave = now.chunk(4, 1)
        cell = forget * cell + enter * new
        before = leave * cell.tanh()
        cells[:, t] = cell
        outputs[:, t] = before
    return outputs, cells, gates


@idiom
def lstm_steps_back(columns: Tensor, last: Optional[Tensor], gates: Tensor, cells: Tensor,  # noqa: UP045
                    memory: Optional[Tensor], weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # noqa: UP045
    """Columns at h_t, all t, and at the last c_T if there are any: to the sums in front of the gates, h_0 and c_0."""
    enter, forget, new, leave = gates.chunk(4, 2)
    before, shown = shifted(cells, memory), cells.tanh()
    to_cell = leave * (1 - shown * shown)  # d h_t / d c_t
    of_cell = torch.stack([new * enter * (1 - enter), before * forget * (1 - forget), enter * (1 - new * new)], 2)
    of_leave = shown * leave * (1 - leave)
    made = columns.new_empty((columns.shape[0], columns.shape[1], columns.shape[2], 4, columns.shape[3]))
    at_hidden = torch.zeros_like(columns[:, :, 0])
    at_cell = at_hidden if last is None else last
    for t in range(columns.shape[2] - 1, -1, -1):
        at_hidden = at_hidden + columns[:, :, t]
        at_cell = at_cell + at_hidden * to_cell[:, t].unsqueeze(1)
        made[:, :, t, :3] = at_cell.unsqueeze(2) * of_cell[:, t].unsqueeze(1)
        made[:, :, t, 3] = at_hidden * of_leave[:, t].unsqueeze(1)
        at_cell = at_cell * forget[:, t].unsqueeze(1)
        at_hidden = made[:, :, t].flatten(2) @ weight
    return made.flatten(3), at_hidden, at_cell


@idiom
def gru_steps(given: Tensor, weight: Tensor, bias: Optional[Tensor],  # noqa: UP045
              hidden: Optional[Tensor]) -> tuple[Tensor, Tensor, Tensor]:  # noqa: UP045
    """h_t of all steps, [N, T, H], the gates r, z, n, [N, T, 3 H], and what r multiplies, [N, T, H].

    h_t = z h_{t-1} + (1 - z) n; r and z are sigmoids of parts of given_t + weight h_{t-1} + bias, n is the tanh of
    given_t + r (weight h_{t-1} + bias), of the third parts.
    """
    width = weight.shape[1]
    gates = given.clone()
    outputs = given.new_empty((given.shape[0], given.shape[1], width))
    inner = torch.empty_like(outputs)
    before = first_state(hidden, given, weight)
    for t in range(0, given.shape[1], 1):
        heard = F.linear(before, weight, bias)
        now = gates[:, t]
        now[:, : 2 * width].add_(heard[:, : 2 * width]).sigmoid_()
        reset, update, new = now.chunk(3, 1)
        new.add_(reset * heard[:, 2 * width :]).tanh_()
        inner[:, t] = heard[:, 2 * width :]
        before = new + update * (before - new)
        outputs[:, t] = before
    return outputs, gates, inner


@idiom
def gru_steps_back(columns: Tensor, gates: Tensor, inner: Tensor, outputs: Tensor,
                   hidden: Optional[Tensor], weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # noqa: UP045
    """Columns at h_t, all t, back to given_t and to weight h_{t-1} + bias, [N, K, T, 3 H] each, and to h_0."""
    reset, update, new = gates.chunk(3, 2)
    before = shifted(outputs, hidden)
    of_new = (1 - update) * (1 - new * new)  # d h_t / d the sum in front of n; then of those in front of r and z
    slopes = torch.stack([of_new * inner * reset * (1 - reset), (before - new) * update * (1 - update), of_new], 2)
    own = torch.stack([torch.ones_like(reset), torch.ones_like(reset), reset], 2)
    made = columns.new_empty((columns.shape[0], columns.shape[1], columns.shape[2], 3, columns.shape[3]))
    at_hidden = torch.zeros_like(columns[:, :, 0])
    for t in range(columns.shape[2] - 1, -1, -1):
        at_hidden = at_hidden + columns[:, :, t]
        at_sums = at_hidden.unsqueeze(2) * slopes[:, t].unsqueeze(1)
        made[:, :, t] = at_sums
        heard = at_sums * own[:, t].unsqueeze(1)
        at_hidden = at_hidden * update[:, t].unsqueeze(1) + heard.flatten(2) @ weight
    return made.flatten(3), (made * own.unsqueeze(1)).flatten(3), at_hidden

"""A program beside the model's own training step on one batch: loss, outputs and gradient must be the same to rounding.

A program that gives no gradient is compared in loss and outputs, and a gradient-only program of the same matched graph,
with the same rules and fused operations, in the gradient; entries of a Hessian's diagonal where rounding may spoil it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from hbpcompiler.compiler.match.matched import Matched
from hbpcompiler.compiler.prove.candidate import Candidate
from hbpcompiler.compiler.prove.comparison import LAST_DIGIT, Comparison, Numbers, compared, left_out
from hbpcompiler.compiler.prove.differences import (
    SHOWN_FIRST,
    SMALLEST_FIRST,
    decided,
    exactly,
    gradient_entry,
    is_little,
)
from hbpcompiler.compiler.prove.draws import Draws, drawing
from hbpcompiler.compiler.prove.elsewhere import gradients, multiplied, stretched
from hbpcompiler.compiler.prove.expectation import drew_alike, in_expectation
from hbpcompiler.compiler.prove.in_double import Doubled, as_near, explained
from hbpcompiler.compiler.prove.in_half import in_length
from hbpcompiler.compiler.prove.jacobian import JACOBIAN, jacobian_lines
from hbpcompiler.compiler.prove.noise import Moves, Noise
from hbpcompiler.compiler.prove.own_step import OwnStep, Pass, own_step
from hbpcompiler.compiler.prove.refused import DRAWS_OTHERWISE, OWN_AND_OTHERWISE, PYTHON_DRAWS
from hbpcompiler.compiler.prove.second_order import in_doubt, second_order
from hbpcompiler.compiler.prove.suspects import hooks, suspects
from hbpcompiler.compiler.prove.twin import GRAD, Results, twin_program
from hbpcompiler.compiler.prove.verification import Verification
from hbpcompiler.compiler.prove.weights import NOT_ALONE
from hbpcompiler.compiler.trace.batch import Batch
from hbpcompiler.errors import ProofError

FEW = 8
"""Samples for a gradient that the program does not give, and with a memory budget: the model's own step needs some."""
SINGLE, DOUBLE = torch.finfo(torch.float32).eps, torch.finfo(torch.float64).eps
_REDUCED = {torch.float32: 2.0**-10}
"""What products of a dtype may be rounded to where the machine is told that this is good enough."""


def prove(candidate: Candidate, batch: Batch, draws: Draws, raw: Any = None, full: bool = False) -> Verification:
    """The table of errors for this batch. `raw` is what the program returned for it with these draws, if it was run.

    Raises ProofError where the model's own step fails.
    """
    proof = _Proof(candidate, draws, rounding(candidate.matched, batch.tensors[0].device))
    lines, notes = proof.first_order(batch, raw)
    only = in_doubt(candidate)
    if proof.averaged:
        asked = {*candidate.options.quantities} - {GRAD}
        unproven = asked if full else asked & {*only, JACOBIAN}
        lines += [left_out(name, "", DRAWS_OTHERWISE) for name in sorted(unproven)]
    elif full:
        lines += second_order(candidate, candidate.few(batch, 2), proof.draws, proof.eps, proof.random)
    elif only:
        same = raw is not None and batch.samples <= FEW and proof.draws is draws
        few, known = (batch, raw) if same else (candidate.few(batch, 2), None)
        lines += second_order(candidate, few, proof.draws, proof.eps, proof.random, only, known)
    return Verification(tuple(lines), tuple(notes))


def rounding(matched: Matched, device: torch.device) -> float:
    """The coarsest rounding among the values that derivatives reach."""
    dtypes = {value.dtype for value in matched.graph.values() if value.name in matched.active and value.floating}
    coarse = [torch.finfo(dtype).eps for dtype in dtypes]
    if _reduced_products(device):
        coarse += [_REDUCED[dtype] for dtype in dtypes & set(_REDUCED)]
    if torch.is_autocast_enabled(device.type):
        coarse.append(torch.finfo(torch.get_autocast_dtype(device.type)).eps)
    return max(coarse)


def _reduced_products(device: torch.device) -> bool:
    """Whether float32 products may be rounded further: TF32, or bfloat16 on the CPU."""
    if torch.get_float32_matmul_precision() != "highest":
        return True
    return device.type == "cuda" and (torch.backends.cudnn.allow_tf32 or torch.backends.cuda.matmul.allow_tf32)


class _Proof:
    """One candidate, from one state of the random generators."""

    def __init__(self, candidate: Candidate, draws: Draws, eps: float) -> None:
        self.candidate, self.draws, self.eps = candidate, draws, eps
        matched = candidate.matched
        self.parameters = {value.key: value for value in matched.trainable if value.name in matched.active}
        self.random = False
        self.averaged = False
        """Whether the model draws otherwise than the program, so that averages were compared"""
        self.of_loss = matched.graph.has_loss_streams
        """Whether there is a gradient to compare: derivatives of an output need no rules for the loss."""
        self._twin: Callable[..., Results] | None = None

    def first_order(self, batch: Batch, raw: Any) -> tuple[list[Comparison], list[str]]:
        """Loss, outputs and gradient."""
        limited = self.candidate.options.memory_budget is not None and batch.samples > FEW
        if raw is None or limited:
            batch, raw = (self.candidate.few(batch, FEW), None) if limited else (batch, raw)
            raw = self._run(batch, self.draws)
        found = self._program(raw)
        gives = self._gives_all(found)
        few = batch if gives else self.candidate.few(batch, FEW)
        step = self._step(batch, self.draws, backward=self.of_loss and few.samples == batch.samples)
        self.random, right = step.random, _numbers(step)
        if not gives:
            found = {**_forward(found), **self._alone(few, self.draws)}
            if few.samples < batch.samples:
                right |= gradients(self._step(few, self.draws))
        how = "" if few.samples == batch.samples else f"of {few.samples} samples"
        lines = [*compared(_forward(found), _forward(right), self.eps,
                           lambda run: _forward(_numbers(self._noisy(batch, run, backward=False)))),
                 *compared(_backward(found), _backward(self._trainable(right)), self.eps,
                           lambda run: _backward(_numbers(self._noisy(few, run))), how)]
        hooked = hooks(self.candidate.model, self.candidate.loss)  # they are not at copies of parameters
        if self.eps == SINGLE and not step.random and not hooked:
            lines = explained(lines, lambda doubled: self._in(doubled, batch, few, how))
            lines = as_near(lines, found, right, lambda: gradients(self._own_step(few, self.draws, Doubled())))
        if self.eps == DOUBLE and not step.random and self.candidate.weights(few) is None:
            lines = exactly(lines, found, lambda: self._trainable(gradients(self._own_step(few, self.draws, None))),
                            self.eps)
            lines = [self._decided(line, few, found, right) for line in lines]
        own = (step.own_backward or bool(hooked)) and self.of_loss
        if own and self.eps > LAST_DIGIT:
            lines = in_length(lines, found, self._trainable(right), self.eps,
                              lambda run: gradients(self._noisy(few, run)))
        if own and all(line.agrees for line in lines):
            lines += self._elsewhere(few, self._trainable(right))
        notes = ["" if gives else "grad is that of a gradient-only program of the same graph and rules."]
        quantities = self.candidate.options.quantities
        if JACOBIAN in quantities:
            lines += self._jacobian(batch, raw)
        alike = self.candidate.draws_alike or not step.random
        if not alike and not all(line.agrees for line in lines if line.quantity not in (GRAD, JACOBIAN)):
            if not self.draws.by_form and self.candidate.options.backend != "inductor":
                self.draws = replace(self.draws, by_form=True)
                return self.first_order(batch, None)
            if not self._drew_alike(few):
                if step.own_backward or hooked:
                    raise ProofError(OWN_AND_OTHERWISE)
                lines, self.averaged = self._averages(few), True
                notes.append("The program's random draws are not those of the model with the same random state, so "
                             "that averages over many draws are compared.")
        if step.loss is None:
            notes.append(NOT_ALONE)
        if step.python_random:
            notes.append(PYTHON_DRAWS)
        return lines, [note for note in notes if note]

    def _drew_alike(self, few: Batch) -> bool:
        """Whether the program's draws were the model's, so that a difference is none between draws."""
        def program() -> None:
            if self.of_loss:  # a program with nothing that is sampled
                self._gradient_program()(self.candidate.state, *few.tensors, **self.candidate.beside)
            else:
                self.candidate.run(few)

        return self.draws.by_form and drew_alike(self.candidate, few, self.draws, program)

    def _averages(self, few: Batch) -> list[Comparison]:
        return in_expectation(lambda draws: self._all(few, draws),
                              lambda draws: self._trainable(_numbers(self._step(few, draws))), self.draws)

    def _elsewhere(self, few: Batch, right: Numbers) -> list[Comparison]:
        """Where a backward of the user's own is the derivative on this batch, and not in general."""
        candidate, right = self.candidate, _backward(right)
        if candidate.weights(few) is not None:
            return []
        return [*multiplied(candidate, few, self.draws, right, self.eps),
                *stretched(candidate, few, self.draws, right, self.eps,
                           lambda batch, state: self._alone(batch, self.draws, state))]

    def _decided(self, line: Comparison, few: Batch, found: Numbers, right: Numbers) -> Comparison:
        """The line; where it disagrees by a last few digits and nothing of the user's explains it, by differences."""
        candidate = self.candidate
        if not is_little(line) or line.key not in found or suspects(candidate, few, self.draws):
            return line
        entry = int((found[line.key] - right[line.key]).abs().argmax())
        value, doubt = gradient_entry(candidate, few, self.draws, line.parameter, entry)
        own, torchs = (numbers[line.key].flatten()[entry] for numbers in (found, right))
        return decided(line, own, torchs, value, doubt, smallest=SMALLEST_FIRST, shown=SHOWN_FIRST)

    def _in(self, doubled: Doubled, batch: Batch, few: Batch, how: str) -> list[Comparison]:
        """Loss, outputs and gradient in double precision."""
        candidate, eps = self.candidate, torch.finfo(torch.float64).eps
        state, beside = doubled.named(candidate.state), doubled.named(candidate.beside)
        with drawing(self.draws):
            found = self._program(candidate.run(doubled.batch(batch), tensors=state, **beside))
        if not self._gives_all(found):
            found = {**_forward(found), **self._alone(doubled.batch(few), self.draws, state, beside)}
        right = _numbers(self._own_step(batch, self.draws, doubled))
        if few.samples < batch.samples:
            right |= gradients(self._own_step(few, self.draws, doubled))
        return compared(found, self._trainable(right), eps, how=how)

    def _jacobian(self, batch: Batch, raw: Any) -> list[Comparison]:
        def own(of: Callable[[Pass], Tensor], run: int | None) -> OwnStep:
            noise = None if run is None else Noise(self.eps, run)
            return own_step(self.candidate.model, self.candidate.loss, batch, self.draws, noise, of=of)

        return jacobian_lines(self.candidate.matched, raw.jacobian, batch.samples, own, self.eps)

    def _run(self, batch: Batch, draws: Draws) -> Any:
        with drawing(draws):
            return self.candidate.run(batch)

    def _step(self, batch: Batch, draws: Draws, backward: bool = True) -> OwnStep:
        try:
            return self._own_step(batch, draws, None, backward)
        except Exception as error:
            text = (str(error).strip().splitlines() or [""])[0]
            raise ProofError(
                "the program cannot be proven, because the model's own forward and backward fail on this batch: "
                f"{type(error).__name__}: {text[:300]}{' ...' if len(text) > 300 else '.'} "
                "hbp.compile(..., verify=False) compiles without this proof") from error

    def _noisy(self, batch: Batch, run: int, backward: bool = True) -> OwnStep:
        return self._own_step(batch, self.draws, Noise(self.eps, run), backward)

    def _own_step(self, batch: Batch, draws: Draws, noise: Moves | None, backward: bool = True) -> OwnStep:
        """With the weights of samples that the call gives, if it gives some."""
        model, loss, weights = self.candidate.model, self.candidate.loss, self.candidate.weights(batch)
        if weights is None:
            return own_step(model, loss, batch, draws, noise, backward)
        return own_step(model, loss, batch, draws, noise, backward, of=weights.number,
                        value=lambda run: weights.loss(run, loss))

    def _program(self, raw: Any) -> dict[tuple[str, str], Tensor]:
        found = {("loss", ""): raw.loss}
        for number, field in enumerate(self.candidate.fields):
            found["output", _number(number, len(self.candidate.fields))] = getattr(raw, field)
        quantities = self.candidate.options.quantities
        if "batch_grad" in quantities:
            found |= {(GRAD, name): each.sum(0) for name, each in raw.batch_grad.items()}
        if GRAD in quantities:
            found |= {(GRAD, name): gradient for name, gradient in raw.grad.items()}
        return found

    def _gives_all(self, found: Numbers) -> bool:
        return not self.of_loss or all((GRAD, name) in found for name in self.parameters)

    def _alone(self, batch: Batch, draws: Draws, state: Mapping[str, Tensor] | None = None,
               beside: Mapping[str, Any] | None = None) -> dict[tuple[str, str], Tensor]:
        """The gradient by a program for it alone."""
        with drawing(draws):
            gradients = self._gradient_program()(self.candidate.state if state is None else state, *batch.tensors,
                                                 **(self.candidate.beside if beside is None else beside))[GRAD]
        return {(GRAD, name): gradient for name, gradient in gradients.items()}

    def _gradient_program(self) -> Callable[..., Results]:
        if self._twin is None:
            self._twin = twin_program(self.candidate.matched, self.candidate.options, (GRAD,))
        return self._twin

    def _all(self, batch: Batch, draws: Draws) -> Numbers:
        found = self._program(self._run(batch, draws))
        return found if self._gives_all(found) else {**_forward(found), **self._alone(batch, draws)}

    def _trainable(self, right: Mapping[tuple[str, str], Tensor]) -> Numbers:
        """With zeros for parameters of the program that autograd finds no way to."""
        if not self.of_loss:
            return right
        zero = torch.zeros((), device=self.draws.device)
        zeros = {(GRAD, name): zero.expand([int(length) for length in value.shape])
                 for name, value in self.parameters.items()}
        return {**zeros, **right}


def _numbers(step: OwnStep) -> dict[tuple[str, str], Tensor]:
    outputs = {("output", _number(number, len(step.outputs))): output for number, output in enumerate(step.outputs)}
    losses = {} if step.loss is None else {("loss", ""): step.loss}
    return {**losses, **outputs, **gradients(step)}


def _number(number: int, count: int) -> str:
    return "" if count == 1 else f"[{number}]"


def _forward(numbers: Numbers) -> Numbers:
    return {key: tensor for key, tensor in numbers.items() if key[0] != GRAD}


def _backward(numbers: Numbers) -> Numbers:
    return {key: tensor for key, tensor in numbers.items() if key[0] == GRAD}

"""A program beside the model's own training step on one batch: loss, outputs and gradient must be the same to rounding.

A program that gives no gradient is compared in loss and outputs, and a gradient-only program of the same matched graph,
with the same rules and fused operations, in the gradient; entries of a Hessian's diagonal where rounding may spoil it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from hbpcompiler.compiler.match.matched import Matched
from hbpcompiler.compiler.prove.candidate import Candidate
from hbpcompiler.compiler.prove.comparison import Comparison, Numbers, compared, left_out
from hbpcompiler.compiler.prove.differences import SHOWN_FIRST, SMALLEST_FIRST, decided, gradient_entry
from hbpcompiler.compiler.prove.draws import Draws, drawing
from hbpcompiler.compiler.prove.elsewhere import gradients, multiplied, stretched
from hbpcompiler.compiler.prove.expectation import in_expectation
from hbpcompiler.compiler.prove.in_double import Doubled, as_near, explained
from hbpcompiler.compiler.prove.jacobian import JACOBIAN, jacobian_lines
from hbpcompiler.compiler.prove.noise import Moves, Noise
from hbpcompiler.compiler.prove.own_step import OwnStep, Pass, own_step
from hbpcompiler.compiler.prove.second_order import CANCELS, EXACT_HESSIANS, in_doubt, second_order
from hbpcompiler.compiler.prove.suspects import hooks, suspects
from hbpcompiler.compiler.prove.twin import GRAD, Results, twin_program
from hbpcompiler.compiler.prove.verification import Verification
from hbpcompiler.compiler.prove.weights import NOT_ALONE
from hbpcompiler.compiler.trace.batch import Batch
from hbpcompiler.errors import ProofError, listing

FEW = 8
"""Samples for a gradient that the program does not give, and with a memory budget: the model's own step needs some."""
LISTED = 8
PYTHON_DRAWS = "The model draws from Python's or numpy's generator, whose traced draw a program keeps; draw with torch."
INFINITE_SLOPE = ("An infinite slope (sqrt, log, acosh, a norm, at the edge of its domain) that meets a zero one "
                  "(relu, clamp, hardtanh): torch skips it, a product of both is NaN. Stay away from the edge, as in "
                  "sqrt(h + 1e-12), or do both in one module's forward, where they are one operation.")
NOT_FINITE = ("The model's own numbers are infinite or NaN on this batch, by torch's own kernels, and the program's "
              "are not (causal attention with a scale that is not positive, sums beyond the dtype's range): neither "
              "is of use there.")
SQUEEZED = ("Of one sample, squeeze() takes the axis of the samples away too. Name the axis that is meant, as in "
            "squeeze(-1); or leave out such a batch, DataLoader(..., drop_last=True).")
SINGLE, DOUBLE = torch.finfo(torch.float32).eps, torch.finfo(torch.float64).eps
LITTLE = 1e-5
"""Of the largest number: a gap in double precision that a kernel of torch's may be to blame for."""
_REDUCED = {torch.float32: 2.0**-10}
"""What products of a dtype may be rounded to where the machine is told that this is good enough."""


def prove(candidate: Candidate, batch: Batch, draws: Draws, raw: Any = None, full: bool = False) -> Verification:
    """The table of errors for this batch. `raw` is what the program returned for it with these draws, if it was run.

    Raises ProofError where the model's own step fails.
    """
    proof = _Proof(candidate, draws, rounding(candidate.matched, batch.tensors[0].device))
    lines, notes = proof.first_order(batch, raw)
    if full:
        lines += second_order(candidate, candidate.few(batch, 2), draws, proof.eps, proof.random)
    elif only := in_doubt(candidate):
        few, known = (batch, raw) if raw is not None and batch.samples <= FEW else (candidate.few(batch, 2), None)
        lines += second_order(candidate, few, draws, proof.eps, proof.random, only, known)
    return Verification(tuple(lines), tuple(notes))


def check(verification: Verification, candidate: Candidate, batch: Batch, draws: Draws) -> None:
    """Raise ProofError where rounding does not explain a difference."""
    wrong = verification.wrong
    if not wrong:
        return
    findings = [_described(line) for line in wrong[:LISTED]]
    if len(wrong) > LISTED:
        findings.append(f"and {len(wrong) - LISTED} more")
    off = {line.key for line in wrong}
    right = [line.parameter for line in verification if line.quantity == GRAD and line.key not in off]
    if right and any(line.quantity == GRAD for line in wrong):
        findings.append(f"the gradient agrees at {', '.join(map(repr, right[:LISTED]))}"
                        f"{', ...' if len(right) > LISTED else ''}")
    found = [*suspects(candidate, batch, draws, {line.parameter for line in wrong}),
             *(note for note in verification.notes if note == PYTHON_DRAWS),
             *[INFINITE_SLOPE for line in wrong if line.error == math.inf and wrong[0].quantity == GRAD][:1],
             *[NOT_FINITE for line in wrong if line.lost and line.quantity != GRAD][:1],
             *[CANCELS for line in wrong if line.quantity in EXACT_HESSIANS and candidate.may_cancel][:1],
             *[SQUEEZED for line in wrong if line.shapes and batch.samples == 1][:1]]
    advice = ["Suspects in the model and the loss:", *(f"  - {suspect}" for suspect in found)] if found else [
        "Nothing in the model explains it. It may be hbpcompiler's own fault: please report it with the model."]
    advice.append("hbp.compile(..., verify=False) compiles without this proof; the numbers are then wrong as listed.")
    raise ProofError(listing("the program does not compute what the model itself does on this batch, and is not kept:",
                             findings, "\n".join(advice)))


def _described(line: Comparison) -> str:
    what = f"{line.quantity} of {line.parameter!r}" if line.parameter else line.quantity
    if line.shapes:
        return f"{what}: the program's shape is {line.shapes}"
    if line.lost and line.error == math.inf:
        return f"{what}: {line.lost} of the model's own numbers are infinite or NaN, the program's are others"
    return (f"{what}: off by {line.error:.2g}, where the largest number is {line.largest:.2g} and rounding explains "
            f"{line.allowed:.1g}{f' ({line.how})' if line.how else ''}")


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
            lines = [self._decided(line, few, found, right) for line in lines]
        if (step.own_backward or hooked) and self.of_loss and all(line.agrees for line in lines):
            lines += self._elsewhere(few, self._trainable(right), step.random)
        notes = ["" if gives else "grad is that of a gradient-only program of the same graph and rules."]
        quantities = self.candidate.options.quantities
        if JACOBIAN in quantities:
            lines += self._jacobian(batch, raw)
        alike = self.candidate.draws_alike or not step.random
        if not alike and not all(line.agrees for line in lines if line.quantity not in (GRAD, JACOBIAN)):
            lines = in_expectation(lambda draws: self._all(few, draws),
                                   lambda draws: self._trainable(_numbers(self._step(few, draws))), self.draws)
            lines += [left_out(JACOBIAN, "", "the model draws otherwise")] * (JACOBIAN in quantities)
            notes.append("The program's random draws are not those of the model with the same random state, so that "
                         "averages over many draws are compared.")
        if step.loss is None:
            notes.append(NOT_ALONE)
        if step.python_random:
            notes.append(PYTHON_DRAWS)
        return lines, [note for note in notes if note]

    def _elsewhere(self, few: Batch, right: Numbers, random: bool) -> list[Comparison]:
        """Where a backward of the user's own is the derivative on this batch, and not in general."""
        candidate, right = self.candidate, _backward(right)
        if candidate.weights(few) is not None:
            return []
        lines = multiplied(candidate, few, self.draws, right, self.eps)
        if not random:
            lines += stretched(candidate, few, self.draws, right, self.eps,
                               lambda batch, state: self._alone(batch, self.draws, state))
        return lines

    def _decided(self, line: Comparison, few: Batch, found: Numbers, right: Numbers) -> Comparison:
        """The line; where it disagrees by a last few digits and nothing of the user's explains it, by differences."""
        candidate = self.candidate
        if line.agrees or line.quantity != GRAD or line.error > LITTLE * line.largest or line.key not in found or (
                suspects(candidate, few, self.draws)):
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
        if self._twin is None:
            self._twin = twin_program(self.candidate.matched, self.candidate.options, (GRAD,))
        with drawing(draws):
            gradients = self._twin(self.candidate.state if state is None else state, *batch.tensors,
                                   **(self.candidate.beside if beside is None else beside))[GRAD]
        return {(GRAD, name): gradient for name, gradient in gradients.items()}

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

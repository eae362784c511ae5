"""einsum whose result has no samples: the sum over them comes last, so that it ends a loss and mixes nothing before."""

from collections.abc import Sequence
from typing import Any

import torch

from hbpcompiler.rule import Tensor
from hbpcompiler.rule.decomposition import Decomposition


def in_pieces(equation: str, tensors: Sequence[Tensor], path: Sequence[int] | None) -> Tensor:
    """By torch's own kernel of other operations; not by decompose(), which asks this file."""
    kernel = torch._C.DispatchKey.CompositeImplicitAutograd
    result: Tensor = torch.ops.aten.einsum.default._op_dk(kernel, equation, tensors, path=path)
    return result


def einsum(equation: str, tensors: Sequence[Tensor], path: Sequence[int] | None = None) -> Tensor:
    """As torch has it; "nc,nc->" as "nc,nc->n", summed, where n is as long as the batch."""
    given, arrow, result = equation.replace(" ", "").partition("->")
    if "." in given:
        return in_pieces(equation, tensors, path)
    if not arrow:  # then the result has the letters that stand once, in alphabetical order
        result = "".join(sorted(letter for letter in set(given) - {","} if given.count(letter) == 1))
    summed = ""
    for letters, tensor in zip(given.split(","), tensors, strict=True):
        lengths: Sequence[Any] = tensor.shape
        for letter, length in zip(letters, lengths, strict=True):
            if isinstance(length, torch.SymInt) and letter not in summed + result:
                summed += letter
    whole = in_pieces(f"{given}->{summed}{result}", tensors, path)
    return whole.sum(list(range(len(summed)))) if summed else whole


EINSUM = Decomposition(["aten.einsum"], einsum)
"""Without cases, which have samples in their results: tests/models/test_loss_spellings.py has losses that end in it."""

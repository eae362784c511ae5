"""What to write instead of what model or loss do not take."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hbpcompiler.compiler.trace.batch import Batch

PROBABILITY = 1e-2
"""How far from 1 those of all classes may be together."""
MEANT = "give loss=nn.MSELoss() for a regression, nn.BCEWithLogitsLoss() for two classes told by one output"

OF_SIZES = ("A function of math's or numpy's of them is that of a tensor, output.new_full((), len(output)).log(), and "
            "numbers of samples are torch.arange(len(output)).")


def unlikely(loss: Callable[..., Tensor], output: Any, target: Any) -> str:
    """What is said of a loss that hardly is the one that is meant: the default, where another was forgotten, any
    cross-entropy of probabilities, and nll_loss of what is no logarithm of some."""
    if _is(loss, nn.CrossEntropyLoss, F.cross_entropy) and isinstance(output, Tensor) and _are_probabilities(output):
        return ("the model's outputs are probabilities, as of a softmax at its end, and cross-entropy takes logits, of "
                "which it makes probabilities itself: leave the softmax out")
    if _is(loss, nn.NLLLoss, F.nll_loss) and isinstance(output, Tensor) and not _are_logarithms(output):
        return ("the model's outputs are no logarithms of probabilities of classes, and nll_loss takes those: end the "
                "model with nn.LogSoftmax(1), or let it return logits and the loss be nn.CrossEntropyLoss()")
    if type(loss) is not nn.CrossEntropyLoss or not isinstance(output, Tensor) or not isinstance(target, Tensor):
        return ""
    if output.dim() > 1 and output.shape[1] == 1:
        return ("CrossEntropyLoss, which is the default, of a model with one output is zero whatever the model says, "
                f"and so is every derivative; {MEANT}")
    if target.is_floating_point() and bool((target < 0).any()):
        return ("CrossEntropyLoss, which is the default, takes targets of a floating-point dtype for probabilities of "
                f"classes, and these are negative in part; {MEANT}")
    if target.is_floating_point() and target.shape == output.shape and bool(
            ((target.sum(1) - 1).abs() > PROBABILITY).any()):
        return ("CrossEntropyLoss, which is the default, takes targets of a floating-point dtype for probabilities of "
                f"classes, and these do not add up to 1; {MEANT}")
    return ""


def _is(loss: Any, module: type[nn.Module], function: Callable[..., Tensor]) -> bool:
    return type(loss) is module or getattr(loss, "func", loss) is function


def _are_probabilities(output: Tensor) -> bool:
    """Whether they are positive, of two classes at least, and add up to 1, as logits hardly do."""
    if output.dim() < 2 or output.shape[1] < 2 or not output.numel() or not output.is_floating_point():
        return False
    rounding = (8 + output.shape[1]) * torch.finfo(output.dtype).eps
    return bool((output >= 0).all()) and bool(((output.sum(1) - 1).abs() <= rounding).all())


def _are_logarithms(output: Tensor) -> bool:
    """Whether those of all classes may be logarithms of probabilities; true of what is not told at all."""
    if output.dim() < 2 or not output.numel() or not output.is_floating_point():
        return True
    return bool(((output.float().exp().sum(1) - 1).abs() <= PROBABILITY).all())


def advice(text: str, batch: Batch, made: str = "", part: str = "") -> str:
    """What to write instead, for what torch says most often."""
    whole = [(label, target) for label, target in zip(batch.layout.labels[batch.layout.inputs :], batch.targets,
                                                      strict=True) if not target.is_floating_point()]
    if made.startswith("[] ") or (" of [] " in made and not batch.targets):
        return ("; the model returns one number, its own loss, say: it has to return what that is made of, a row for "
                "each sample, without labels among its inputs; they are the target, and the loss is passed by itself")
    if "takes 1 positional argument but 2" in text:
        return "; it is called with both: pass lambda output, y: loss(output)"
    if "required positional argument" in text:
        return "; pass what else it takes: lambda output, y: loss(output, y, ...)"
    if "not implemented for 'Long'" in text and (not made or "float" in made):
        return "; a loss is called with (output, target), in this order"
    if not batch.targets and ("'NoneType'" in text or "not NoneType" in text):
        return ("; with compiled(X, None) the loss must not read its target: pass loss=lambda output, y: output.sum(), "
                "say, where a quantity of the output alone is asked for (jacobian)")
    if "must be Tensor, not" in text and part:
        return f"; the loss gets all that the model returns: pass lambda output, y: loss({part}, y), say"
    if made and "float" not in made:
        return ("; the model returns whole numbers, of which there is no derivative (argmax, round, a comparison): "
                "return what they are made of, such as logits")
    if "dtype to be Long" in text and batch.targets:
        label = batch.layout.labels[batch.layout.inputs]
        return f"; cross-entropy, the default loss, takes classes of torch.int64: pass {label}.long(), or {MEANT}"
    if "xpected target size" in text and made.count(",") > 1:
        return ("; cross-entropy takes outputs [N, C, ...], with the classes in axis 1: where they are the last axis, "
                "let the loss flatten, lambda o, y: F.cross_entropy(o.flatten(0, -2), y.flatten())")
    if ("arget size" in text and made.startswith("[N, 1]") and batch.targets and batch.targets[0].dim() == 1):
        label = batch.layout.labels[batch.layout.inputs]
        return f"; pass {label}.unsqueeze(1), which is [N, 1], too"
    for label, target in whole:
        if "multi-target not supported" in text and target.dim() == 2 and target.shape[1] == 1:
            return f"; classes are [N]: pass {label}.squeeze(1)"
        if ("Long" in text or "int64" in text) and "Float" not in text and target.dtype != torch.int64:
            return f"; classes are of torch.int64: pass {label}.long()"
        if any(word in text for word in ("Float", "Double", "Half", "floating", "Integral", "bool tensor")):
            return f"; pass {label}.float(), or .double() for a model in double precision"
    return ""


def of_inputs(text: str, batch: Batch, forward: Callable[..., Any], model: str) -> str:
    """What to write where a model, of this class, does not take these inputs: whole numbers, too many or too few, or
    names that are none of forward's."""
    whole = [label for label, tensor in zip(batch.layout.labels, batch.inputs, strict=False)
             if not (tensor.is_floating_point() or tensor.is_complex())]
    if whole and ("same dtype" in text or "expected scalar type" in text or "should be the same" in text):
        numbers = ", ".join(f"{label}.float()" for label in whole)
        return f"; pass {numbers}, or .double() for a model in double precision"
    if f"{model}.forward() missing" in text:
        return "; several inputs are a tuple, compiled((x1, x2), y), or a dict of forward's arguments by name"
    if f"{model}.forward() got an unexpected keyword" in text:
        names = ", ".join(inspect.signature(forward).parameters)
        return f"; a dict holds forward's arguments by their names, {names}; a target is the last argument of the call"
    if f"{model}.forward() takes" in text:
        return "; all arguments of a call but the last one, the target, are inputs of the model"
    if (found := re.search(r"cannot be multiplied \(\d+x(\d+) and (\d+)x\d+\)", text)) is not None:
        return f"; it takes {found[2]} features, in the last axis, and is given {found[1]}"
    if "Inference tensors" in text:
        return ("; the model or the batch was made under torch.inference_mode(), which allows no derivatives: make "
                "it outside, or under torch.no_grad()")
    return ""


def of_trace(text: str, batch: Batch) -> str:
    """The same where a trace stops, of any size N, and where torch says that N does not go with this batch's own."""
    if "__format__" in text:
        return ("; it writes a text of a tensor's value, or of the batch's size, which are numbers in a call alone: "
                "leave out what prints them, print outside of model and loss, or print the tensor itself, print(t)")
    if "SymInt" in text or "SymFloat" in text or "numpy.object_" in text:  # numpy's array of such numbers
        return f"; it makes a plain number of the batch's size. {OF_SIZES}"
    if re.search(r"\bN\b.*//", text):
        return ("; it cuts the samples into parts (chunk, split, unfold along axis 0), which are not as long as each "
                "other for every N: keep all samples of the batch together, in their order")
    if re.search(r"is invalid for input of size .*\bN\b", text):
        return "; a shape there fixes the batch's size: write x.shape[0] in it, or -1 for that axis"
    if not all(re.search(rf"\b{word}\b", text) for word in ("N", batch.samples)):
        return advice(text, batch)
    return (f"; the code seems to fix the batch's size, {batch.samples}: write x.shape[0], or -1 for that axis, in its "
            "place")

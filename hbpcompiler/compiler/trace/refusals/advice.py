"""What to write instead of what model or loss do not take."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hbpcompiler.compiler.trace.batch import Batch

PROBABILITY = 1e-2
"""How far from 1 those of all classes may be together."""
IN_WORDS = {
    "fake tensor in the exported program constant's list":
        "it takes a value out of the trace, by x.data, torch.tensor(x), a derivative inside or an in-place change of a "
        "parameter's data; use x.detach() or x.clone(), and leave parameters as they are",
    "unhashable type: non-nested SymInt":
        "a dict, a set or functools.lru_cache is asked by the batch's size, which a program leaves open; make what is "
        "kept there anew at each call (torch.ones(x.shape[0], 1), say), or keep one of the greatest size in a buffer "
        "and take x.shape[0] rows of it",
    "is mutated in the forward method":
        "a tensor is changed in place that is neither a parameter nor a registered buffer; register it "
        "(register_buffer), or compute another tensor in its place",
}
"""What torch says of a trace that stops, by a part of it, and what to write instead."""
MEANT = "give loss=nn.MSELoss() for a regression, nn.BCEWithLogitsLoss() for two classes told by one output"


def unlikely(loss: Callable[..., Tensor], output: Any, target: Any) -> str:
    """What is said of a loss that hardly is the one that is meant: the default, where another was forgotten, and any
    cross-entropy of probabilities."""
    if _is_cross_entropy(loss) and isinstance(output, Tensor) and _are_probabilities(output):
        return ("the model's outputs are probabilities, as of a softmax at its end, and cross-entropy takes logits, of "
                "which it makes probabilities itself: leave the softmax out")
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


def _is_cross_entropy(loss: Any) -> bool:
    return type(loss) is nn.CrossEntropyLoss or getattr(loss, "func", loss) is F.cross_entropy


def _are_probabilities(output: Tensor) -> bool:
    """Whether they are positive, of two classes at least, and add up to 1, as logits hardly do."""
    if output.dim() < 2 or output.shape[1] < 2 or not output.numel() or not output.is_floating_point():
        return False
    rounding = (8 + output.shape[1]) * torch.finfo(output.dtype).eps
    return bool((output >= 0).all()) and bool(((output.sum(1) - 1).abs() <= rounding).all())


def advice(text: str, batch: Batch, made: str = "", part: str = "") -> str:
    """What to write instead, for what torch says most often."""
    whole = [(label, target) for label, target in zip(batch.layout.labels[batch.layout.inputs :], batch.targets,
                                                      strict=True) if not target.is_floating_point()]
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


def of_inputs(text: str, batch: Batch) -> str:
    """What to write where a model does not take whole numbers."""
    whole = [label for label, tensor in zip(batch.layout.labels, batch.inputs, strict=False)
             if not (tensor.is_floating_point() or tensor.is_complex())]
    if whole and ("same dtype" in text or "expected scalar type" in text or "should be the same" in text):
        numbers = ", ".join(f"{label}.float()" for label in whole)
        return f"; pass {numbers}, or .double() for a model in double precision"
    return ""


def in_words(text: str) -> str:
    """What is to be done where torch says this of a trace; "" if that is not known."""
    return next((words for part, words in IN_WORDS.items() if part in text), "")


def of_trace(text: str, batch: Batch) -> str:
    """The same where a trace stops, of any size N, and where torch says that N does not go with this batch's own."""
    if not all(re.search(rf"\b{word}\b", text) for word in ("N", batch.samples)):
        return advice(text, batch)
    return (f"; the code seems to fix the batch's size, {batch.samples}: write x.shape[0], or -1 for that axis, in its "
            "place")

"""What runs in place of torch's own code while tracing, because it computes the same in a way that can be followed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from functools import reduce
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import adaptive, transformer
from torch.nn.modules import module as every_module
from torch.utils import checkpoint

from hbpcompiler.compiler.trace.patches.detached import seen_by_a_trace
from hbpcompiler.compiler.trace.patches.einsums import einsum_with_layers
from hbpcompiler.compiler.trace.patches.replaced import replaced
from hbpcompiler.compiler.trace.patches.variances import variances_clamped_in_sight
from hbpcompiler.errors import InputTypeError, ModelError, UnsupportedOpError, listing
from hbpcompiler.rule import ModuleRule
from hbpcompiler.rules.shared.bags import of_bags


@contextmanager
def module_equivalents(model: nn.Module, rules: Mapping[type[nn.Module], ModuleRule]) -> Iterator[None]:
    """Meanwhile the modules that have a rule run the rule's forward; all that are refused are named at once. A module
    with a forward of its own, which somebody assigned to it, runs that."""
    found = [(path, module) for path, module in model.named_modules()
             if type(module) in rules and "forward" not in module.__dict__]
    findings = [f"module {path!r} ({type(module).__name__}): {reason}" for path, module in found
                if (reason := rules[type(module)].refuse(module)) is not None]
    if findings:
        raise UnsupportedOpError(listing("The model cannot be compiled:", findings))
    try:
        for _, module in found:
            module.__dict__["forward"] = MethodType(rules[type(module)].forward, module)
        yield
    finally:
        for _, module in found:
            module.__dict__.pop("forward", None)


EACH_ROW_BY_ITSELF = "batched_mm"
EXPERTS = ("get_experts_implementation", "set_experts_implementation")


@contextmanager
def rows_keep_their_places(model: nn.Module) -> Iterator[None]:
    """Meanwhile mixtures of experts that can be asked to, those of transformers, compute each row by itself: their
    other ways sort the batch's rows by expert, or loop over the experts that some row chose. Those that refuse to
    change stay as they are, and the trace says what it cannot follow there."""
    asked: list[Any] = [module for module in model.modules() if all(hasattr(module, name) for name in EXPERTS)]
    changed: list[tuple[Any, Any]] = []
    try:
        for module in asked:
            with suppress(Exception):  # whatever a library raises whose way cannot be changed
                before = module.get_experts_implementation()
                module.set_experts_implementation(EACH_ROW_BY_ITSELF)
                changed.append((module, before))
        yield
    finally:
        for module, before in changed:
            module.set_experts_implementation(before)


@contextmanager
def without_backward_hooks_of_all() -> Iterator[None]:
    """Backward hooks that are registered for all modules would wrap ours too, and no program runs any: the proof
    compares with what they make of the model's gradient."""
    held = [getattr(every_module, name) for name in ("_global_backward_hooks", "_global_backward_pre_hooks")]
    before = [dict(hooks) for hooks in held]
    try:
        for hooks in held:
            hooks.clear()
        yield
    finally:
        for hooks, own in zip(held, before, strict=True):
            hooks.update(own)


def _without_checkpoint(run: Callable[..., Any], preserve_random_state: bool, *arguments: Any) -> Any:
    """In place of the autograd function of checkpoint(use_reentrant=True): what is kept is the planner's choice."""
    if not any(isinstance(argument, Tensor) and argument.requires_grad for argument in arguments):
        raise ModelError("checkpoint(use_reentrant=True) of values that need no gradient cuts the gradient of all "
                         "parameters inside off; write use_reentrant=False")
    return run(*arguments)


def _is_said_to_be_causal(mask: Tensor | None, is_causal: bool | None = None, size: int | None = None) -> bool:
    """In place of a look at the mask's values: they are added to the scores in any case."""
    return is_causal is True


def _take_along_dim(input: Tensor, indices: Tensor, dim: int | None = None) -> Tensor:
    """In place of torch's own, which makes numbers of all lengths where one of the two is expanded."""
    if dim is None:
        return input.reshape(-1).gather(0, indices.reshape(-1))
    place = dim % input.dim()
    sizes = [list(input.shape), list(indices.shape)]
    for axis in range(input.dim()):
        if axis != place:
            longest = next((own[axis] for own in sizes if not isinstance(own[axis], int) or own[axis] != 1), 1)
            for own in sizes:
                own[axis] = longest
    return input.expand(sizes[0]).gather(place, indices.expand(sizes[1]))


def _multi_dot(tensors: Sequence[Tensor]) -> Tensor:
    """In place of torch's own, which takes its order from the sizes, and so fixes the batch's."""
    return reduce(torch.matmul, tensors)


def _of_plain_targets(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """In place of a loss whose kernel reads bytes as classes and truth values as numbers, which a trace does not."""
    def run(input: Tensor, target: Tensor, *given: Any, **named: Any) -> Tensor:
        if target.dtype == torch.uint8:
            target = target.long()
        elif target.dtype == torch.bool:
            target = target.to(input.dtype)
        return loss(input, target, *given, **named)

    return run


_OWN_SOFT_MARGIN_LOSS: Callable[..., Tensor] = torch._C._nn.soft_margin_loss


def _soft_margin_loss(input: Tensor, target: Tensor, *given: Any, **named: Any) -> Tensor:
    """In place of torch's, which negates targets in their own dtype: of bytes, 1 becomes 255, in its value alone."""
    if target.dtype == torch.uint8:
        raise InputTypeError(f"targets of soft_margin_loss are 1 and -1, and {target.dtype} has no negative numbers: "
                             "torch's own gradient is not that of its loss there; give "
                             f"(2 * y.to({input.dtype}) - 1) for targets 0 and 1")
    return _OWN_SOFT_MARGIN_LOSS(input, target, *given, **named)


def _margin_ranking_loss(x1: Tensor, x2: Tensor, target: Tensor, margin: float = 0.0, reduction: int = 1) -> Tensor:
    """In place of torch's, of which a trace takes the reduction for a word."""
    each = (margin - target * (x1 - x2)).clamp(min=0)
    return each if reduction == 0 else each.mean() if reduction == 1 else each.sum()


def _hinge_embedding_loss(input: Tensor, target: Tensor, margin: float = 1.0, reduction: int = 1) -> Tensor:
    """The same."""
    each = torch.where(target != 1, (margin - input).clamp(min=0), 0) + torch.where(target != -1, input, 0)
    return each if reduction == 0 else each.mean() if reduction == 1 else each.sum()


_OWN_MULTI_MARGIN_LOSS: Callable[..., Tensor] = torch._C._nn.multi_margin_loss


def _multi_margin_loss(input: Tensor, target: Tensor, p: int = 1, margin: float = 1.0, weight: Tensor | None = None,
                       reduction: int = 1) -> Tensor:
    """In place of torch's, which a trace takes for what has a slope exactly at the margin: its kernel has none."""
    if input.dim() != 2 or target.dim() != 1 or p not in (1, 2):
        return _OWN_MULTI_MARGIN_LOSS(input, target, p, margin, weight, reduction)
    index = target.unsqueeze(1)
    above = torch.relu(margin - input.gather(1, index) + input)
    each = above if p == 1 else above.square()
    each = each if weight is None else each * weight[index]
    is_own = torch.arange(input.shape[1], device=input.device) == index
    rows = torch.where(is_own, 0, each).sum(1) / input.shape[1]
    return rows if reduction == 0 else rows.mean() if reduction == 1 else rows.sum()


_OWN_MULTILABEL_SOFT_MARGIN_LOSS: Callable[..., Tensor] = F.multilabel_soft_margin_loss


def _multilabel_soft_margin_loss(input: Tensor, target: Tensor, weight: Tensor | None = None, *given: Any,
                                 reduction: str = "mean", **named: Any) -> Tensor:
    """In place of torch's, whose two logarithms are convex together, whatever the targets are, and not each by itself:
    t log s(x) + (1 - t) log s(-x) is minus the binary cross-entropy of x."""
    if given or any(value is not None for value in named.values()) or reduction not in ("none", "mean", "sum") or (
            target.dtype == torch.bool or target.shape != input.shape):
        return _OWN_MULTILABEL_SOFT_MARGIN_LOSS(input, target, weight, *given, reduction=reduction, **named)
    each = F.binary_cross_entropy_with_logits(input, target.to(input.dtype), weight, reduction="none").mean(-1)
    return each if reduction == "none" else each.mean() if reduction == "mean" else each.sum()


def _counted(own: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """In place of torch.bincount, whose length is read off the largest number: as long as it is said to be."""
    def run(input: Tensor, weights: Tensor | None = None, minlength: int = 0) -> Tensor:
        if isinstance(minlength, int) and minlength < 1:
            raise ModelError("torch.bincount takes its length from the largest number of the batch, which differs from "
                             "batch to batch; write F.one_hot(t, C).sum(0), or torch.bincount(t, minlength=C), with C "
                             "classes")
        if input.dim() != 1 or input.is_floating_point():
            return own(input, weights, minlength)  # which says what is wrong
        places = F.one_hot(input.long(), minlength)
        return places.sum(0) if weights is None else (places * weights.unsqueeze(1)).sum(0)

    return run


def _no_ctc_loss(*given: Any, **named: Any) -> Tensor:
    """In place of torch's, of which a trace does not know the shape of what it keeps."""
    raise UnsupportedOpError("The model cannot be compiled: ctc_loss has no rule, and torch cannot trace it, because "
                             "what it keeps depends on the values of its lengths. Its forward algorithm written as "
                             "operations, a loop over frames with torch.logsumexp, can be compiled")


def _adaptive_log_softmax(module: Any, input_: Tensor, target_: Tensor) -> Any:
    """In place of the forward of nn.AdaptiveLogSoftmaxWithLoss, which picks the samples of each cluster: here each
    sample meets all clusters, and what its class gets is read from them."""
    head = F.log_softmax(module.head(input_), 1)
    parts = [head[:, : module.shortlist_size]]
    for i, tail in enumerate(module.tail):
        cluster = module.shortlist_size + i
        parts.append(F.log_softmax(tail(input_), 1) + head[:, cluster : cluster + 1])
    output = torch.cat(parts, 1).gather(1, target_.unsqueeze(1)).squeeze(1)
    return adaptive._ASMoutput(output, -output.mean())


def _of_long_indices(embedding: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """In place of embeddings: of 32 bit indices torch has no one-hot vectors and no scattering."""
    def run(input: Tensor, *given: Any, **named: Any) -> Tensor:
        return embedding(input.long() if input.dtype == torch.int32 else input, *given, **named)

    return run


def _embedding_bag(input: Tensor, weight: Tensor, offsets: Tensor | None = None, max_norm: float | None = None,
                   norm_type: float = 2.0, scale_grad_by_freq: bool = False, mode: str = "mean", sparse: bool = False,
                   per_sample_weights: Tensor | None = None, include_last_offset: bool = False,
                   padding_idx: int | None = None) -> Tensor:
    """In place of torch's own, which makes one row of indices of those of all samples."""
    if input.dim() != 2 or offsets is not None or max_norm is not None or scale_grad_by_freq:
        return _OWN_EMBEDDING_BAG(input, weight, offsets, max_norm, norm_type, scale_grad_by_freq, mode, sparse,
                                  per_sample_weights, include_last_offset, padding_idx)
    return of_bags(input, weight, mode, padding_idx, per_sample_weights)


_OWN_EMBEDDING_BAG: Callable[..., Tensor] = F.embedding_bag


@contextmanager
def _losses_of_plain_targets() -> Iterator[None]:
    losses = torch._C._nn
    own = {"cross_entropy_loss": losses, "nll_loss_nd": losses, "mse_loss": losses, "smooth_l1_loss": losses,
           "poisson_nll_loss": torch}
    with ExitStack() as stack:
        for name, owner in own.items():
            stack.enter_context(replaced(owner, name, _of_plain_targets(getattr(owner, name))))
        yield


@contextmanager
def _lengths_unread() -> Iterator[None]:
    with replaced(torch, "take_along_dim", _take_along_dim), replaced(Tensor, "take_along_dim", _take_along_dim), \
            replaced(torch.linalg, "multi_dot", _multi_dot):
        yield


@contextmanager
def plain_ways() -> Iterator[None]:
    """Meanwhile torch's own modules take none of their fast ways, which are chosen by values or make nested tensors;
    inference_mode() is no_grad(), and checkpoints keep everything."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with replaced(transformer, "_detect_is_causal_mask", _is_said_to_be_causal), \
                replaced(checkpoint.CheckpointFunction, "apply", _without_checkpoint), \
                _lengths_unread(), \
                replaced(torch, "einsum", einsum_with_layers(torch.einsum)), \
                _losses_of_plain_targets(), replaced(torch._C._nn, "soft_margin_loss", _soft_margin_loss), \
                replaced(torch, "margin_ranking_loss", _margin_ranking_loss), \
                replaced(torch._C._nn, "multi_margin_loss", _multi_margin_loss), \
                replaced(torch, "hinge_embedding_loss", _hinge_embedding_loss), \
                replaced(F, "multilabel_soft_margin_loss", _multilabel_soft_margin_loss), \
                replaced(torch, "ctc_loss", _no_ctc_loss), \
                replaced(torch, "bincount", _counted(torch.bincount)), \
                replaced(Tensor, "bincount", _counted(Tensor.bincount)), \
                replaced(F, "embedding", _of_long_indices(F.embedding)), \
                replaced(F, "embedding_bag", _embedding_bag), \
                replaced(nn.AdaptiveLogSoftmaxWithLoss, "forward", _adaptive_log_softmax), \
                seen_by_a_trace(), variances_clamped_in_sight():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def unchecked_distributions() -> AbstractContextManager[None]:
    """Meanwhile distributions do not look at the values of their arguments."""
    return replaced(torch.distributions.Distribution, "_validate_args", False)

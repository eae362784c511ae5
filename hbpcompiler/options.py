"""Checks of what the user passes to `compile`, before anything else happens."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from inspect import getattr_static
from types import FunctionType
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from hbpcompiler.clipping import FLAT, STYLES
from hbpcompiler.dense import not_dense
from hbpcompiler.errors import ModelError, OptionError, OptionTypeError, listing
from hbpcompiler.limits import Limits
from hbpcompiler.patterns import fits, fitting
from hbpcompiler.quantities import QUANTITIES, Chosen
from hbpcompiler.quantities.spellings import with_the_closest
from hbpcompiler.rule.registry import Registry, with_rules
from hbpcompiler.schemes import HESSIAN, SCHEMES
from hbpcompiler.system.threads import trainable_of
from hbpcompiler.tied_names import OTHER_NAME, tied_elsewhere

CURVATURE_DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
FULL = "full"
MOST_NAMES = 20
"""Names of parameters that a message shows."""
RECORDERS = "autograd_grad_sample_hooks"
"""The attribute of a model whose layers have Opacus's hooks."""
BACKENDS = ("python", "torchscript", "inductor")
UNITS: Mapping[str, int] = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20,
                            "GIB": 2**30}

Dynamic = tuple[tuple[str, tuple[int, ...]], ...] | Literal[False] | None


@dataclass(frozen=True)
class Options:
    """The arguments of `compile`, checked."""

    quantities: tuple[str, ...]
    backend: str
    memory_budget: int | None
    mc_samples: int
    registry: Registry
    curvature: str
    autotune: bool
    curvature_dtype: torch.dtype | None
    limits: Limits | None = None
    """None: those that `hbp tune` measured, or the default ones."""
    verify: bool | str = True
    """Whether a program is proven on its first batch, and with "full" the quantities beyond the gradient too."""
    chosen: Chosen = field(default_factory=Chosen)
    """Which parameters each quantity is for."""
    joint_bias: bool = False
    """Whether the Kronecker factors of weight and bias are of one block."""
    clipping: str = FLAT
    """The style of clipped gradients (see `clipping`)."""
    dynamic: Dynamic = None
    """Axes of one length, by names of the batch's tensors; None: as lengths arrive; False: none."""


def check_options(quantities: Any, backend: Any, memory_budget: Any, mc_samples: Any, rules: Any,
                  curvature: Any = HESSIAN, autotune: Any = False, curvature_dtype: Any = None,
                  limits: Any = None, verify: Any = True, joint_bias: Any = False, groups: Any = None,
                  clipping: Any = FLAT, dynamic: Any = None) -> Options:
    """Raise OptionError or OptionTypeError naming the offending value, or return the options."""
    if not isinstance(backend, str) or backend not in BACKENDS:
        raise OptionError(f"backend {backend!r} is unknown; choose one of {', '.join(BACKENDS)}")
    if isinstance(mc_samples, bool) or not isinstance(mc_samples, int):
        raise OptionTypeError(f"mc_samples must be a positive integer, not {mc_samples!r}")
    if mc_samples < 1:
        raise OptionError(f"mc_samples must be a positive integer, not {mc_samples}")
    if not isinstance(curvature, str) or curvature not in SCHEMES:
        raise OptionError(f"curvature {curvature!r} is unknown; choose one of {', '.join(SCHEMES)}")
    if not isinstance(autotune, bool):
        raise OptionTypeError(f"autotune must be True or False, not {autotune!r}")
    if not isinstance(joint_bias, bool):
        raise OptionTypeError(f"joint_bias must be True or False, not {joint_bias!r}")
    if limits is not None and not isinstance(limits, Limits):
        raise OptionTypeError(f"limits must be an hbpcompiler.Limits, or None, not {limits!r}")
    return Options(check_quantities(quantities), backend, check_memory(memory_budget), mc_samples, with_rules(rules),
                   curvature, autotune, check_dtype(curvature_dtype), limits, check_verify(verify),
                   replace(check_chosen(quantities), groups=check_groups(groups)), joint_bias,
                   check_clipping(clipping), check_dynamic(dynamic))


def check_groups(groups: Any) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """The patterns of each group of parameters; without any groups, one of all."""
    if groups is None:
        return Chosen().groups
    if not isinstance(groups, Mapping) or not groups:
        raise OptionTypeError("groups must be a dict from names of your choice to lists of parameter names or patterns,"
                              f" such as {{'body': ['layer*'], 'head': ['head.weight']}}, not {groups!r}")
    found = []
    for name, given in groups.items():
        listed = [given] if isinstance(given, str) else given
        if not isinstance(name, str) or not name or not isinstance(listed, list | tuple) or not listed or not all(
                isinstance(part, str) for part in listed):
            raise OptionTypeError(f"groups[{name!r}] must be a parameter's name or a pattern, or a list of some, under "
                                  f"a name that is a text; not {given!r}")
        found.append((name, tuple(listed)))
    return tuple(found)


def check_dynamic(dynamic: Any) -> Dynamic:
    """The axes of each tensor, if they are named."""
    if dynamic is None or dynamic is False:
        return False if dynamic is False else None
    if not isinstance(dynamic, Mapping) or not dynamic:
        raise OptionTypeError("dynamic must be a dict from names of the batch's tensors to their axes of one length, "
                              f"{{'x': [1], 'y': [1]}}, None or False, not {dynamic!r}")
    for name, axes in dynamic.items():
        if not isinstance(name, str) or not isinstance(axes, list | tuple) or not axes or not all(
                isinstance(axis, int) and not isinstance(axis, bool) for axis in axes):
            raise OptionTypeError(f"dynamic[{name!r}] must be a list of axes, such as [1], under the name of one of "
                                  f"the batch's tensors; not {axes!r}")
    wrong = [f"{name!r}: {axis}" for name, axes in dynamic.items() for axis in axes if axis < 1]
    if wrong:
        raise OptionError(listing("the first axis counts the samples, of which a program serves any number; dynamic "
                                  "takes axes from 1 on:", wrong))
    return tuple((name, tuple(dict.fromkeys(axes))) for name, axes in dynamic.items())


def check_clipping(style: Any) -> str:
    """One of the styles."""
    if not isinstance(style, str) or style not in STYLES:
        raise OptionError(f"clipping {style!r} is unknown; choose one of {', '.join(STYLES)}")
    return style


def check_chosen(quantities: Any) -> Chosen:
    """The patterns of a dict of quantities: a text or a list of texts each; "*" alone is the same as none."""
    if not isinstance(quantities, Mapping):
        return Chosen()
    patterns = {}
    for name, given in quantities.items():
        listed = [given] if isinstance(given, str) else given
        if not isinstance(listed, list | tuple) or not listed or not all(isinstance(part, str) for part in listed):
            raise OptionTypeError(f"quantities[{name!r}] must be a pattern of parameter names or a list of some, such "
                                  f"as ['layer1.*', 'head.weight'] or '*', not {given!r}")
        if "*" not in listed:
            patterns[name] = tuple(listed)
    for name in [name for name in quantities if name in QUANTITIES]:
        for other in QUANTITIES[name].brings:
            if other in quantities and patterns.get(other) != patterns.get(name):
                raise OptionError(f"{other} are those of {name}, for the same parameters: give both the same patterns, "
                                  f"or leave {other} out")
            if name in patterns:
                patterns[other] = patterns[name]
    return Chosen(tuple((name, patterns[name]) for name in QUANTITIES if name in patterns))


def check_patterns(model: nn.Module, chosen: Chosen) -> None:
    """OptionError for patterns that match no parameter's name, or only a further name of a tied one; and for parameters
    in several groups."""
    keys = [key for key, _ in model.named_parameters()]
    every = [key for key, _ in model.named_parameters(remove_duplicate=False)]
    unmatched, tied = [], []
    for name, patterns in [*chosen.patterns, *((f"group {name!r}", patterns) for name, patterns in chosen.groups)]:
        unmatched += [f"{name}: {pattern!r}" for pattern in patterns if not fitting(every, pattern)]
        tied += [f"{name}: {finding}" for finding in tied_elsewhere(model, patterns)]
    if unmatched or tied:
        shown = ", ".join(keys[:MOST_NAMES]) + (", ..." if len(keys) > MOST_NAMES else "")
        title = "these patterns match no parameter:" if unmatched else OTHER_NAME
        raise OptionError(listing(title, [*unmatched, *tied], f"Parameters are {shown}."))
    several = {key: [repr(name) for name, patterns in chosen.groups
                     if fits(key, patterns)] for key in keys}
    findings = [f"{key}: {', '.join(names)}" for key, names in several.items() if len(names) > 1]
    if findings:
        raise OptionError(listing("these parameters are in several groups, and columns of one parameter add to one "
                                  "total:", findings))


def check_verify(verify: Any) -> bool | str:
    """True, False or "full"."""
    if isinstance(verify, bool) or verify == FULL:
        return verify if isinstance(verify, bool) else FULL
    error = OptionError if isinstance(verify, str) else OptionTypeError
    raise error(f"verify must be True, False or {FULL!r}, not {verify!r}")


def check_quantities(quantities: Any) -> tuple[str, ...]:
    """A non-empty collection of known names; repeated ones count once."""
    if isinstance(quantities, str) or not isinstance(quantities, Sequence | set | frozenset | Mapping):
        raise OptionTypeError(f"quantities must be a list of names such as ['grad', 'diag_h'], not {quantities!r}")
    if not quantities:
        raise OptionError(f"quantities is empty; choose from {', '.join(QUANTITIES)}")
    strangers = [name for name in quantities if not isinstance(name, str)]
    if strangers:
        raise OptionTypeError(f"quantities must be names; {', '.join(map(repr, strangers))} is not a string")
    unknown = sorted(name for name in quantities if name not in QUANTITIES)
    if unknown:
        raise OptionError(listing(f"unknown quantities: {', '.join(map(with_the_closest, unknown))}", [],
                                  f"Choose from {', '.join(QUANTITIES)}."))
    wanted = {*quantities, *(other for name in quantities for other in QUANTITIES[name].brings)}
    # In the table's order, so that one set of quantities gives one file, however it was written.
    return tuple(name for name in QUANTITIES if name in wanted)


def check_dtype(dtype: Any) -> torch.dtype | None:
    """One of CURVATURE_DTYPES, or None for the model's."""
    known = ", ".join(map(str, CURVATURE_DTYPES))
    if dtype is not None and not isinstance(dtype, torch.dtype):
        raise OptionTypeError(f"curvature_dtype must be one of {known}, or None for the model's, not {dtype!r}")
    if dtype is not None and dtype not in CURVATURE_DTYPES:
        raise OptionError(f"curvature_dtype {dtype} cannot hold columns of curvature; choose one of {known}, or None "
                          "for the model's")
    return dtype


def check_memory(budget: Any) -> int | None:
    """Bytes: a positive integer, or a text such as "512MiB"."""
    if budget is None:
        return None
    if isinstance(budget, bool) or not isinstance(budget, int | str):
        raise OptionTypeError(f"memory_budget must be a number of bytes or a text such as '2GiB', not {budget!r}")
    if isinstance(budget, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", budget)
        if match is None or match[2].upper() not in UNITS:
            raise OptionError(f"memory_budget {budget!r} is not a size; write '2GiB', '512MB' or a number of bytes")
        number = int(float(match[1]) * UNITS[match[2].upper()])
    else:
        number = budget
    if number <= 0:
        raise OptionError(f"memory_budget must be positive, not {budget!r}")
    return number


def check_model(model: Any, loss: Any) -> None:
    """A module with something trainable, and a loss that can be called."""
    for name, given in (("model", model), ("loss", loss)):
        if isinstance(given, type):
            raise OptionTypeError(f"{name} must be a {'torch.nn.Module' if name == 'model' else 'function'}, not "
                                  f"the class {given.__name__} itself; pass an instance: {given.__name__}(...)")
    if not isinstance(model, nn.Module):
        hints = {Iterator | list: ": the model itself, not its parameters", Mapping: ": the model that loads it",
                 FunctionType: ": write it as the forward of a module that holds the parameters"}
        hint = next((hint for kind, hint in hints.items() if isinstance(model, kind)), "")
        raise OptionTypeError(f"model must be a torch.nn.Module, not {type(model).__name__}{hint}")
    if getattr_static(model, "forward", None) is nn.Module.forward:
        raise ModelError(f"the model, {type(model).__name__}, has no forward, and nothing else is called (as a "
                         "training_step): write forward(self, x), which returns what the loss takes")
    scripted = [path or "the model itself" for path, module in model.named_modules()
                if isinstance(module, torch.jit.ScriptModule)]
    if scripted:
        raise ModelError(listing("No trace enters what torch.jit.script and torch.jit.trace have made; pass the "
                                 "modules that it was made of:", scripted))
    if getattr(model, RECORDERS, None):
        raise ModelError("the model has Opacus's hooks, which would record gradients whenever a program is made: take "
                         "grad_sample_mode='no_op' or call remove_hooks() on what make_private returned, and have "
                         "gradients from hbpcompiler.bridges.opacus")
    lazy = [name for name, parameter in model.named_parameters() if is_lazy(parameter)]
    if lazy:
        raise ModelError(listing("These parameters have no shape yet; call the model on a batch once, before it is "
                                 "compiled:", lazy))
    findings = [f"{name} ({how})" for name, value in (*model.named_parameters(), *model.named_buffers())
                if (how := not_dense(value))]
    if findings:
        raise ModelError(listing("Programs compute with dense tensors; these of the model's are not:", findings))
    trainable = trainable_of(model)
    if not trainable:
        hint = ", as model.requires_grad_(True) gives it" if list(model.parameters()) else ""
        if isinstance(loss, nn.Module) and trainable_of(loss):
            hint = ", and the loss has some: the model comes first, as in hbp.compile(model, loss)"
        raise ModelError(f"the model has nothing trainable: no parameter has requires_grad=True{hint}")
    complex_ones = [repr(name) for name, parameter in trainable.items() if parameter.is_complex()]
    if complex_ones:
        raise ModelError(listing("These trainable parameters are complex, and quantities are those of real ones:",
                                 complex_ones, "Keep one as pairs of real numbers, nn.Parameter(torch.view_as_real(w)),"
                                 " and write torch.view_as_complex(self.w) where it is used."))
    if not callable(loss):
        hint = ""
        if any(isinstance(item, Tensor) for item in (loss if isinstance(loss, list | tuple) else [loss])):
            hint = "; a batch goes to what compile returns, compiled(X, y), or third, hbp.operator(model, loss, (X, y))"
        elif isinstance(loss, list | tuple | dict | set):
            hint = "; quantities come third, or by name: hbp.compile(model, quantities=['grad'])"
        elif isinstance(loss, str):
            hint = "; the loss itself, such as nn.CrossEntropyLoss()"
        raise OptionTypeError("loss must be a module or a function of (output, target), not "
                              f"{type(loss).__name__}{hint}")
    if getattr(loss, "reduction", "mean") == "none":
        raise OptionError("the loss has reduction='none'; per-sample quantities need the whole loss: use "
                          "reduction='mean' or 'sum'")


def check_example(example: Any) -> tuple[Any, ...]:
    """example_inputs must be what a call takes: (X, y)."""
    if not isinstance(example, tuple | list):
        raise OptionTypeError(f"example_inputs must be a tuple (X, y), not {type(example).__name__}")
    if len(example) < 2:
        raise OptionTypeError(f"example_inputs must be a tuple (X, y), but it has length {len(example)}")
    return tuple(example)


Loss = Callable[..., Tensor]

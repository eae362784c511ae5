"""What the optimizers have in common: a torch.optim.Optimizer over parameters of a model that it knows by name."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hbpcompiler.errors import InputError, NotFiniteWarning, OptionTypeError, listing
from hbpcompiler.optim.programs import Gradient
from hbpcompiler.optim.settings import Checked
from hbpcompiler.optim.together import Together, all_finite
from hbpcompiler.options import check_model
from hbpcompiler.system.callers import level_of_caller
from hbpcompiler.system.threads import TRACING, alone, trainable_of
from hbpcompiler.wrappers import unwrapped

OWN = "hbpcompiler"
"""The key of `state_dict` under which there is what torch does not know."""


class CurvatureOptimizer(torch.optim.Optimizer):
    """`step(X, y)` computes what it needs of the batch and moves the parameters.

    `params` are those of the model that are trainable, or some of them as torch's optimizers take them, in groups with
    numbers of their own. Everything in `param_groups` may be changed from step to step, by schedulers too.
    """

    numbers: Mapping[str, dict[str, Any]] = {}
    """The numbers of a group, with the arguments of `Checked.number`."""

    def __init__(self, model: nn.Module, loss: Callable[..., Tensor] | None, params: Any,
                 defaults: dict[str, Any], group: Any) -> None:
        self.model = unwrapped(model)
        self.loss = nn.CrossEntropyLoss() if loss is None else loss
        check_model(self.model, self.loss)
        self.steps = 0
        """How many there have been, without those that were left out."""
        self.skipped = 0
        """The batches that were left out, as their loss or gradient was not finite."""
        self._together = Together(group)
        trainable = [*trainable_of(self.model).values()]
        if isinstance(params, str | int | float):
            raise OptionTypeError("params must be parameters of the model, or groups of them as torch.optim has them, "
                                  f"not {params!r}; None takes all. Numbers are given by name, as lr=0.1")
        super().__init__(trainable if params is None else params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As torch's. OptionError for parameters that are not the model's or are in a group already, and for numbers
        that make no sense."""
        params = param_group["params"]
        given = [params] if isinstance(params, Tensor) else list(params)
        tensors = [item[1] if isinstance(item, tuple) else item for item in given]  # of model.named_parameters()
        own = {id(parameter): name for name, parameter in self.model.named_parameters()}
        foreign = sum(id(tensor) not in own for tensor in tensors)
        checked = Checked("this group of parameters")
        if foreign:
            names = [tensor for tensor in tensors if isinstance(tensor, str)]
            instead = f": {names[0]!r} is a text, and parameters are meant, as model[0].parameters()" if names else ""
            checked.findings.append(f"{foreign} of its {len(tensors)} parameters are not among the model's{instead}")
        elsewhere = {id(parameter) for group in self.param_groups for parameter in group["params"]}
        counts = Counter(own[id(tensor)] for tensor in tensors if id(tensor) in own)
        checked.findings += [f"{own[number]} is in another group already" for number in own
                             if number in elsewhere and own[number] in counts]
        checked.findings += [f"{name} is in it {count} times" for name, count in counts.items() if count > 1]
        if isinstance(params, set):
            checked.findings.append("params is a set, whose order is another in each run, and a state goes by it: give "
                                    "a list")
        self._check_group(checked, {name: param_group.get(name, self.defaults[name]) for name in self.numbers})
        checked.done()
        super().add_param_group({**param_group, "params": given})

    def _check_group(self, checked: Checked, numbers: Mapping[str, Any]) -> None:
        """Find what makes no sense about the numbers that a group begins with."""
        missing = [name for name in self.numbers if numbers[name] is None and self.defaults[name] is not None]
        checked.findings += [f"{name} is None here and {self.defaults[name]} for other groups" for name in missing]
        if not missing:
            self._check_numbers(checked, numbers)

    def _check_numbers(self, checked: Checked, numbers: Mapping[str, Any]) -> None:
        """Find those of a group's numbers that no step can be made with."""
        for name, limits in self.numbers.items():
            checked.number(name, numbers[name], **limits)

    def _check_step(self) -> None:
        """OptionError for what has been set since the last step, by schedulers or by hand, and for parameters that are
        the model's no longer, as they would stay where they are without a word."""
        checked = Checked("this step")
        own = {id(parameter) for parameter in self.model.parameters()}
        groups = [parameter for group in self.param_groups for parameter in group["params"]]
        if strangers := sum(id(parameter) not in own for parameter in groups):
            checked.findings.append(f"{strangers} of its {len(groups)} parameters are the model's no longer, which has "
                                    "others in their places (by load_state_dict(assign=True), or a new layer): make a "
                                    "new optimizer")
        for group in self.param_groups:
            self._check_numbers(checked, group)
        checked.done()

    @torch.no_grad()
    def step(self, *batch: Any, closure: Callable[[], Any] | None = None) -> Tensor:  # type: ignore[override]  # a batch more
        """One step on a batch (X, y), as `hbp.compile`'s programs take it; returns the loss before it.

        `closure`, if given, is called first, with gradients enabled, and what it leaves in p.grad is the gradient: of
        more batches, say, or unscaled. It may return a loss, which is returned in place of the batch's. The curvature
        is the batch's all the same. Without it p.grad is set to the batch's gradient.

        With a group each rank gives its part of the batch, and all make the step of the whole batch; a closure's
        gradients have to be the same on all of them.

        A batch whose loss or gradient is not finite is left out: nothing changes but p.grad, which is None then
        (unless there is a closure), and a NotFiniteWarning says so once.

        Raises OptionError where a group's numbers have been set to what no step can be made with; parameters and
        averages stay as they are.
        """
        if not batch or any(callable(given) and not isinstance(given, Tensor) for given in (batch[0], batch[-1])):
            raise InputError(f"{type(self).__name__} takes the batch: step(X, y), or step(X, y, closure=closure)")
        closed = None
        if closure is not None:
            with torch.enable_grad():
                closed = closure()
        with TRACING, alone(self.model):  # else a pass of an operator in another thread might hold copies of them
            loss = self._stepped(batch, closure is not None)
        return loss if closed is None else closed

    def _stepped(self, batch: tuple[Any, ...], is_closed: bool) -> Tensor:
        self._together.begin(self.model, batch, self._check_step)
        loss, gradient = self._gradient(batch)
        chosen = self._chosen()
        if is_closed:
            gradient = self._closed(gradient, chosen)
        else:
            for name, parameter in chosen.items():
                parameter.grad = None if gradient is None else gradient.get(name)
        if gradient is None:
            self.skipped += 1
            if self.skipped == 1:
                warn_of_skipped()
        else:
            self._move(batch, loss, {name: part for name, part in gradient.items() if name in chosen})
            self._together.mean([parameter.data for parameter in chosen.values()])
            self.steps += 1
        return loss

    def _closed(self, gradient: Gradient | None, chosen: Mapping[str, nn.Parameter]) -> Gradient | None:
        """What a closure has left in p.grad; None where not all is finite."""
        closed = {name: parameter.grad for name, parameter in chosen.items() if parameter.grad is not None}
        if gradient is None:
            return None
        if strangers := [name for name in closed if name not in gradient]:
            raise InputError(f"the closure gives {', '.join(strangers)} a gradient, but the loss of this batch "
                             "does not reach them, so that they have no curvature: leave them to another optimizer")
        if not closed:
            raise InputError("the closure has left no gradient in p.grad: it must call loss.backward()")
        self._together.check_alike(closed)
        return closed if all_finite(closed.values()) else None

    # -- what the optimizers are ---------------------------------------------------------------------------------------

    def _gradient(self, batch: tuple[Any, ...]) -> tuple[Tensor, Gradient | None]:
        """Loss and gradient of a batch, with whatever else is due; None, and nothing else, where not all is finite."""
        raise NotImplementedError

    def _move(self, batch: tuple[Any, ...], loss: Tensor, gradient: Gradient) -> None:
        """Change the parameters."""
        raise NotImplementedError

    def _own_state(self) -> dict[str, Any]:
        """Beside the tensors in `state`."""
        return {}

    def _check_own_state(self, state: Mapping[str, Any]) -> None:
        """Raises InputError for one that does not fit."""
        return

    def _kept(self, state: Mapping[str, Any]) -> list[str]:
        """The groups' numbers that a state does not bring."""
        return []

    def _load_own_state(self, state: Mapping[str, Any]) -> None:
        return

    # -- by name -------------------------------------------------------------------------------------------------------

    def _chosen(self) -> dict[str, nn.Parameter]:
        """The parameters that are in some group, and trainable now."""
        own = {id(parameter) for group in self.param_groups for parameter in group["params"]}
        return {name: parameter for name, parameter in trainable_of(self.model).items() if id(parameter) in own}

    def _groups(self) -> dict[str, dict[str, Any]]:
        """The group of each parameter of the model; those in none have the defaults."""
        groups = {id(parameter): group for group in self.param_groups for parameter in group["params"]}
        return {name: groups.get(id(parameter), self.defaults) for name, parameter in self.model.named_parameters()}

    def _buffer(self, parameter: nn.Parameter, name: str) -> Tensor:
        """A tensor of the state, zeros at first; in the parameter's dtype, if that has changed."""
        state = self.state[parameter]
        if name not in state:
            state[name] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        elif state[name].dtype != parameter.dtype:
            state[name] = state[name].to(parameter.dtype)
        found: Tensor = state[name]
        return found

    # -- copies ------------------------------------------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        """For copy and pickle: all there is, but for a step that a scheduler has wrapped."""
        return {name: value for name, value in self.__dict__.items() if name != "step"}

    # -- state ---------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """As torch's, with the curvature beside it: a run that loads it goes on bit-equal."""
        return {**super().state_dict(), OWN: {"optimizer": type(self).__name__, "steps": self.steps,
                                              **self._own_state()}}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Raises InputError for the state of another optimizer, or of a model of other shapes; nothing is changed
        then."""
        own = state_dict.get(OWN) if isinstance(state_dict, Mapping) else None
        if not isinstance(own, Mapping) or own.get("optimizer") != type(self).__name__:
            found = own.get("optimizer") if isinstance(own, Mapping) else "torch's own"
            raise InputError(f"this is not the state of {type(self).__name__} but of {found}")
        self._check_shapes(state_dict)
        self._check_own_state(own)
        kept = [{name: group[name] for name in self._kept(own)} for group in self.param_groups]
        super().load_state_dict({key: value for key, value in state_dict.items() if key != OWN})
        for group, numbers in zip(self.param_groups, kept, strict=True):
            group.update(numbers)
        self.steps = own["steps"]
        self._load_own_state(own)

    def _check_shapes(self, state_dict: Mapping[str, Any]) -> None:
        """InputError for tensors of other shapes than the parameters that they are about."""
        names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        groups = zip(self.param_groups, state_dict["param_groups"], strict=False)
        pairs = [pair for own, other in groups for pair in zip(own["params"], other["params"], strict=False)]
        wrong = {}
        for parameter, number in pairs:
            name = names.get(id(parameter), "a parameter")
            for value in state_dict["state"].get(number, {}).values():
                if isinstance(value, Tensor) and value.dim() and value.shape != parameter.shape:
                    wrong[name] = f"{name} is {list(parameter.shape)} here and {list(value.shape)} there"
        if wrong:
            raise InputError(listing("this is the state of a model of other shapes:", list(wrong.values())))


def warn_of_skipped() -> None:
    """Said once by each optimizer."""
    warnings.warn("a batch's loss or gradient is not finite: it is left out, parameters and averages stay as they are. "
                  "Later ones are left out without a word; `skipped` counts them", NotFiniteWarning,
                  stacklevel=level_of_caller())

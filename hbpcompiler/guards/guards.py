"""What `Compiled` asks at each call: which state of Python is this, which programs were traced under it?"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any, TypeVar

from torch import Tensor, nn

from hbpcompiler.guards import memory
from hbpcompiler.guards.ambient import Ambient, ambient, around_traces, autocasts, device_types
from hbpcompiler.guards.draws import refuse_draws
from hbpcompiler.guards.walk import Walk
from hbpcompiler.system.modes import FunctionMode
from hbpcompiler.system.threads import TRACING

Result = TypeVar("Result")
_READERS = frozenset({"item", "tolist", "numpy", "__float__", "__int__", "__bool__", "__index__", "__array__",
                      "__contains__", "equal", "allclose", "is_nonzero"})
"""Names of what makes Python values of a tensor's numbers."""


class State:
    """A state of Python as one call found it, until something moves."""

    def __init__(self, walk: Walk, surroundings: Ambient, programs: dict[Any, Any]) -> None:
        self._walk, self._watched = walk, walk.watched
        self.surroundings = surroundings
        self.programs = programs
        """Those traced under states equal to this one."""
        self.arguments: dict[int, tuple[Any, dict[str, Tensor]]] = {}
        """By a program's id, the program and the tensors that it reads; the same until something moves."""

    @property
    def autocast(self) -> bool:
        """Whether autocast is on."""
        return autocasts(self.surroundings)

    @property
    def of_traces(self) -> Hashable:
        """What traces of the same tensors have in common: equal in equal states, for whomever they are made."""
        return self._walk.key, self.surroundings, around_traces()

    @property
    def key(self) -> Hashable:
        """Equal in equal states."""
        return self._walk.key

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All that the model and the loss reach."""
        return tuple(self._walk.tensors)

    def unchanged(self, surroundings: Ambient) -> bool:
        return surroundings == self.surroundings and self._watched.unchanged()

    def put_back(self) -> None:
        """Undo what running the model has done to this state."""
        self._watched.put_back()

    def places(self, constants: Mapping[str, Tensor]) -> dict[str, int]:
        """Where in Python's state tensors lie that a trace found outside the model's parameters and buffers."""
        numbers = {id(tensor): number for number, tensor in enumerate(self._walk.tensors)}
        stored = {memory.place(tensor): number for number, tensor in enumerate(self._walk.tensors)}
        found = {name: numbers.get(id(tensor), stored.get(memory.place(tensor))) for name, tensor in constants.items()}
        return {name: number for name, number in found.items() if number is not None}

    def tensor(self, place: int) -> Tensor:
        return self._walk.tensors[place]


class Guards:
    """The states that a model and a loss have been called in."""

    def __init__(self, model: nn.Module, loss: Callable[..., Tensor]) -> None:
        self._model, self._loss = model, loss
        self._programs: dict[Any, dict[Any, Any]] = {}
        self._read: frozenset[int] = frozenset()
        self._state: State | None = None
        self.device_types = device_types(model)

    def __len__(self) -> int:
        """The number of programs."""
        return sum(len(made) for programs in self._programs.values() for made in programs.values())

    def add(self, state: State, form: Any, program: Any, most: int) -> None:
        """Keep a program made under a state; beyond so `most` those that were used longest ago (`used`) are dropped."""
        state.programs.setdefault(form, []).append(program)
        every = [(made.used, programs, own, made) for programs in self._programs.values()
                 for own, kept in programs.items() for made in kept if made is not program]
        for _, programs, own, made in sorted(every, key=lambda entry: entry[0])[: max(0, len(every) + 1 - most)]:
            self._drop(programs, own, made)
        self._programs = {key: programs for key, programs in self._programs.items() if programs}

    def drop(self, state: State, form: Any, program: Any) -> None:
        """Forget a program made under a state."""
        self._drop(state.programs, form, program)
        state.arguments.pop(id(program), None)

    def _drop(self, programs: dict[Any, Any], form: Any, program: Any) -> None:
        left = [made for made in programs.get(form, []) if made is not program]
        if left:
            programs[form] = left
        else:
            programs.pop(form, None)
        if self._state is not None:
            self._state.arguments.pop(id(program), None)  # another may get the same id

    def current(self) -> State:
        """The state now. A few microseconds if nothing has moved; otherwise all is read anew."""
        surroundings = ambient(self.device_types)
        state = self._state
        if state is not None and state.unchanged(surroundings):
            return state
        with TRACING:
            return self._read_anew(surroundings)

    def _read_anew(self, surroundings: Ambient) -> State:
        self.device_types = device_types(self._model)
        walk = Walk(self._model, self._loss, self._read)
        programs = self._programs.setdefault((walk.key, surroundings), {})
        self._state = State(walk, surroundings, programs)
        return self._state

    def probed(self, run: Callable[[], Result]) -> tuple[State, Result]:
        """`run` model and loss, eagerly, to see what a trace would not show: the state to trace under, what `run` gave.

        Plain tensors whose numbers Python reads (item()) belong to the state from then on. ModelError where random
        numbers are drawn that torch does not draw. What the run does to Python's state is undone.
        """
        state = self.current()
        reads = _Reads()
        try:
            with reads:
                result = refuse_draws(state._walk.generators, run)
        finally:
            state.put_back()
        read = frozenset(number for number, tensor in enumerate(state._walk.tensors) if id(tensor) in reads.ids)
        if read <= self._read:
            return state, result
        self._read |= read
        return self._read_anew(state.surroundings), result


class _Reads(FunctionMode):
    """Ids of tensors whose numbers become Python values."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: set[int] = set()

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(function, "__name__", "") in _READERS:
            self.ids |= {id(argument) for argument in args if isinstance(argument, Tensor)}
        return function(*args, **(kwargs or {}))

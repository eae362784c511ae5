"""What goes wrong inside functions that users wrote: which function of which rule it was, its line, and what helps.

The exception itself stays as it is, so that code which asks a rule something and can do without the answer goes on as
with any rule. Where nobody could, `rules_named` makes a RuleError of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any

from hbpcompiler.errors import HbpError, RuleError
from hbpcompiler.rule.contraction import Contraction
from hbpcompiler.rule.decomposition import Decomposition
from hbpcompiler.rule.functions import R, with_functions
from hbpcompiler.rule.op import Op
from hbpcompiler.rule.residual import Diagonal, Factor, Zero
from hbpcompiler.rule.rule import ModuleRule, Rule
from hbpcompiler.rule.structure import Selection, Structure

Function = Callable[..., Any]
NOTE = "_hbpcompiler_rule"
TRACED = ("functions of rules are traced to write code, so they may branch on op.shape(name), op.has(name) and "
          "attributes, and not on tensors: on their values, dtype, dim() or len(); shapes may be passed on as they "
          "are, x.reshape(c.shape)")
MADE = ("make tensors of those that are given: op.self.new_ones(...), op.self.new_zeros(...), op.self.new_tensor(...) "
        "or torch.ones_like(op.self)")
ADVICE: Mapping[str, str] = {
    "symbolically traced": TRACED, "Proxy object cannot be": TRACED, "symbolic tracing": TRACED,
    "item assignment": "write torch.where, torch.cat or torch.nn.functional.pad in place of r[...] = c",
    "device meta": MADE, "same device": MADE, "must be tuple of ints": MADE,
    **{f"{name}() takes": MADE for name in ("ones", "zeros", "empty", "full", "arange", "eye", "linspace")},
    "has no constants of several numbers": MADE,
    "meta tensors": f"no number can be read off a tensor: {TRACED}",
}
"""By words of the original message."""
RETURNED: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    "refuse": ("a text that says why, or None", lambda found: _is_reason(found)),
    "check": ("a text that says what is wrong with the target, or None", lambda found: _is_reason(found)),
    "terms": ("a whole number, or None", lambda found: found is None or _is_whole(found)),
    "reduction": ('"mean", "sum" or "none"', lambda found: found in ("mean", "sum", "none")),
    "residual": ("ZERO, PIECES, Diagonal(...) or Factor(...)",
                 lambda found: isinstance(found, Zero | Diagonal | Factor)),
    "structure": ("a Structure or a Selection", lambda found: isinstance(found, Structure | Selection)),
    "params": ("a dict {argument: Contraction(...)}", lambda found: isinstance(found, Mapping)
               and all(isinstance(item, Contraction) for item in found.values())),
    "count of residual": ("a whole number", lambda found: _is_whole(found)),
}
"""What functions of these names return that are asked without tensors."""


def _is_reason(found: Any) -> bool:
    return found is None or (isinstance(found, str) and found != "")


def _is_whole(found: Any) -> bool:
    return isinstance(found, int) and not isinstance(found, bool)


def with_names(rule: R, file: str) -> R:
    """A rule of the user's: what goes wrong in its functions is noted, and what they return looked at.

    A use whose result has more axes than a contraction's equation says is refused, so that torch's own derivatives
    serve it.
    """
    title = ", ".join(rule.operations)

    def wrap(function: Function, name: str) -> Function:
        return noting(function, name, f"the rule for {title}", file)

    named = with_functions(rule, wrap)
    if isinstance(named, Rule) and named.params is not Rule.params:
        own = named.refuse
        object.__setattr__(named, "refuse", lambda op: own(op) or _of_other_axes(named, op))
    return named


def any_with_names(rule: Any, file: str) -> Any:
    """The same of what is a rule, a module's rule or a decomposition."""
    if isinstance(rule, ModuleRule):
        whose = f"the rule for {rule.module.__name__}"
        return replace(rule, forward=noting(rule.forward, "forward", whose, file, NotImplementedError),
                       refuse=noting(rule.refuse, "refuse", whose, file))
    if isinstance(rule, Decomposition):
        whose = f"the decomposition of {', '.join(rule.operations)}"
        curved = None if rule.curved is None else noting(rule.curved, "curved", whose, file)
        return replace(rule, function=noting(rule.function, "function", whose, file), curved=curved)
    return with_names(rule, file)


def noting(function: Function, name: str, whose: str, file: str, but: type[Exception] = HbpError) -> Function:
    """The same function; what it raises says where, unless it is one that has a meaning."""
    wanted, fits = RETURNED.get(name, ("", lambda found: True))

    @wraps(function)
    def noted(*given: Any, **named: Any) -> Any:
        try:
            found = function(*given, **named)
        except Exception as error:
            if not isinstance(error, HbpError | but) or type(error) is RuleError:
                error.__dict__.setdefault(NOTE, (whose, file, name, function))
            if name in ("check", "terms"):  # asked in each call, where nobody waits
                raise named_error(error) from error
            raise
        if not fits(found):
            wrong = RuleError(f"{whose} in {file}: {name} must return {wanted}, not {found!r}")
            wrong.__dict__[NOTE] = None  # it says all
            raise wrong
        return found

    return noted


def named_error(error: BaseException) -> Exception:
    """A RuleError that says where it was raised, if it was inside a function of a rule; else the error itself."""
    where: tuple[str, str, str, Function] | None = getattr(error, NOTE, None)
    inner = error
    while where is None and inner.__cause__ is not None:
        inner = inner.__cause__
        where = getattr(inner, NOTE, None)
    if where is None or (isinstance(error, HbpError) and type(error) is not RuleError):
        assert isinstance(error, Exception)
        return error
    whose, file, name, function = where
    text = (str(inner).strip() or type(inner).__name__).splitlines()[0]
    shown = text if type(inner) is RuleError else f"{type(inner).__name__}: {text}"
    advice = next((help for words, help in ADVICE.items() if words in text), "")
    return RuleError(f"{whose} in {file}: {name} fails{_line(inner, file, function)}: {shown}"
                     + (f"; {advice}" if advice else ""))


def _line(error: BaseException, file: str, function: Function) -> str:
    """The innermost line of the rule's file that ran, or else the one at which the function begins."""
    trace, line = error.__traceback__, 0
    while trace is not None:
        if Path(trace.tb_frame.f_code.co_filename) == Path(file):
            line = trace.tb_lineno
        trace = trace.tb_next
    code = getattr(function, "__code__", None)
    if not line and code is not None and Path(code.co_filename) == Path(file):
        line = code.co_firstlineno
    return f" at line {line}" if line else ""


@contextmanager
def rules_named() -> Iterator[None]:
    """Meanwhile what a rule's function raises, and nobody else deals with, is a RuleError that names it."""
    try:
        yield
    except Exception as error:
        found = named_error(error)
        if found is error:
            raise
        raise found from error


def is_noted(error: BaseException) -> bool:
    """Whether a function of a user's rule raised it."""
    return named_error(error) is not error


def _of_other_axes(rule: Rule, op: Op) -> str | None:
    """Why a contraction does not fit the axes of this use's result, if its columns are taken as they come."""
    for slot, contraction in rule.params(op).items():
        first = contraction.letters[0]
        plain = contraction.columns is Contraction.columns
        shape = op.shape("output")
        if plain and op.has(slot) and len(first) != 2 + len(shape):
            return (f"the contraction \"{contraction.equation}\" of '{slot}' takes columns with the letters {first}, "
                    f"and here they are [N, K, {', '.join(map(str, shape))}]; name all axes, or merge positions by "
                    "columns=")
    return None

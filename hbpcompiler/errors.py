"""Every error that the library raises on purpose, and how several findings become one message."""

from __future__ import annotations

from collections.abc import Sequence


class HbpError(Exception):
    """Base of all errors raised on purpose."""


class CompileError(HbpError):
    """Something is wrong with the model, the options or the rules; no program exists yet."""


class UnsupportedOpError(CompileError, NotImplementedError):
    """The model uses operations, or uses of operations, that no rule covers."""


class UsesNotJoinedError(UnsupportedOpError):
    """The uses of tied `parameters` cannot be joined; they must be values of the graph."""

    def __init__(self, message: str, parameters: Sequence[str]) -> None:
        super().__init__(message)
        self.parameters = frozenset(parameters)


class ModelError(CompileError, ValueError):
    """The model cannot be compiled as it stands."""


class NoLossError(ModelError):
    """The loss is no tensor of one number."""

    def __init__(self, text: str, returned: object) -> None:
        super().__init__(text)
        self.number = returned if isinstance(returned, int | float) else None
        """Python's, if it is one."""


class OptionError(CompileError, ValueError):
    """An option of compile has a value that makes no sense."""


class NothingChosenError(OptionError):
    """With this batch no parameter reaches the loss of those that these `quantities` are for."""

    def __init__(self, message: str, quantities: Sequence[str]) -> None:
        super().__init__(message)
        self.quantities = tuple(quantities)


class OptionTypeError(CompileError, TypeError):
    """An option of compile has the wrong type."""


class ProofError(CompileError, ValueError):
    """A program does not compute what the model itself does on the batch that it was made from; it is not kept."""


class RuleError(CompileError, ValueError):
    """A rule file breaks the contract of rules."""


class InputError(HbpError, ValueError):
    """A batch does not fit the model, the loss or the program."""


class NoTermsError(InputError):
    """The loss is a mean, and all of this batch's targets are ignored."""


class InputTypeError(InputError, TypeError):
    """A batch has the wrong type or dtype."""


class BatchDoesNotFitError(ModelError, InputError):
    """The model itself fails on the batch that it was to be traced with."""


class NotConvergedError(HbpError, ArithmeticError):
    """An iteration did not reach its tolerance in the steps that it was allowed."""


class InternalError(HbpError, AssertionError):
    """A stage of the compiler, or a pass, broke what it promises to the next one."""

    def __init__(self, place: str, before: Sequence[str], finding: str) -> None:
        after = f" (after {', '.join(before)})" if before else ""
        super().__init__(f"hbpcompiler's own fault, found behind {place}{after}: {finding}. Please report it with the "
                         "model and the call of hbp.compile")
        self.place = place


class RankError(HbpError, RuntimeError):
    """Another process of a torch.distributed group failed, or is gone."""


class ScipyMissingError(HbpError, ImportError):
    """SciPy is not installed."""


class IndefiniteCurvatureWarning(UserWarning):
    """A loss of the user's own may be not convex, and then its generalised Gauss-Newton matrix is indefinite."""


class CacheWarning(UserWarning):
    """The cache folder cannot be written; programs are kept in a temporary one."""


class LogWarning(UserWarning):
    """The log of a run cannot be written; training goes on, and lines are kept until they can be. Or it holds another
    run already, and nothing says that this one goes on with it."""


class NotFiniteWarning(UserWarning):
    """The loss or the gradient of a training step is infinite or NaN."""


class TotalWarning(UserWarning):
    """A total of a data set depends on how that is cut, cannot be resumed, is of other numbers than the model's, or is
    of batches whose entries may be something else than they are taken for."""


class LongCallWarning(UserWarning):
    """A call is predicted to take long; it says so before it starts."""


class MonitorWarning(UserWarning):
    """A monitor leaves something out; training goes on."""


class LossWarning(UserWarning):
    """The loss is hardly the one that is meant: cross-entropy, the default, is zero of one output, takes real
    targets for probabilities, and outputs of a softmax for logits."""


class MixedSamplesWarning(UserWarning):
    """One sample changes the gradients of others, so that clipping does not bound what it does to their sum."""


class LengthsWarning(UserWarning):
    """There is no program for all lengths of an axis: each length is traced and planned anew."""


class RuleWarning(UserWarning):
    """A rule of the user's is for an operation that torch does not have yet, and one of a like name exists."""


class UnusedParametersWarning(UserWarning):
    """Trainable parameters do not reach the loss, and are left out of the results, as torch leaves their grad None; or
    what would be trained is no parameter of the model, as of modules in a plain list; or a curvature has no block of
    them, so that scores of influence leave them out."""


def listing(head: str, findings: Sequence[str], advice: str = "") -> str:
    """One message out of many findings: a head, a line each, and what to do. What is found twice is said once."""
    lines = [head, *(f"  - {finding}" for finding in dict.fromkeys(findings))]
    if advice:
        lines.append(advice)
    return "\n".join(lines)

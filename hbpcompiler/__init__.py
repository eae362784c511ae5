"""hbpcompiler: compiles a PyTorch model into a readable program for gradients, their statistics and curvature.

    import hbpcompiler as hbp
    compiled = hbp.compile(model, quantities=["diag_h", "kflr"])
    result = compiled(X, y)
"""

import torch

from hbpcompiler import optim
from hbpcompiler.accumulate import Total, accumulate, shard
from hbpcompiler.compiled import Compiled, compile
from hbpcompiler.compiler.prove.verification import Verification
from hbpcompiler.curvature import Curvature, curvature
from hbpcompiler.ekfac import ekfac
from hbpcompiler.errors import (
    BatchDoesNotFitError,
    CacheWarning,
    CompileError,
    HbpError,
    IndefiniteCurvatureWarning,
    InputError,
    InputTypeError,
    InternalError,
    LengthsWarning,
    LogWarning,
    LongCallWarning,
    LossWarning,
    MixedSamplesWarning,
    ModelError,
    MonitorWarning,
    NoLossError,
    NotConvergedError,
    NoTermsError,
    NotFiniteWarning,
    NothingChosenError,
    OptionError,
    OptionTypeError,
    ProofError,
    RankError,
    RuleError,
    RuleWarning,
    ScipyMissingError,
    TotalWarning,
    UnsupportedOpError,
    UnusedParametersWarning,
    UsesNotJoinedError,
)
from hbpcompiler.limits import Limits
from hbpcompiler.monitor import Monitor
from hbpcompiler.operators import Operator, operator
from hbpcompiler.quantities import QUANTITIES
from hbpcompiler.report import report
from hbpcompiler.result import Result
from hbpcompiler.spectra import CompiledSpectrum, Spectrum, bootstrap, spectrum
from hbpcompiler.version import __version__, warn_if_untried

__all__ = [
    "QUANTITIES",
    "BatchDoesNotFitError",
    "CacheWarning",
    "CompileError",
    "Compiled",
    "CompiledSpectrum",
    "Curvature",
    "HbpError",
    "IndefiniteCurvatureWarning",
    "InputError",
    "InputTypeError",
    "InternalError",
    "LengthsWarning",
    "Limits",
    "LogWarning",
    "LongCallWarning",
    "LossWarning",
    "MixedSamplesWarning",
    "ModelError",
    "Monitor",
    "MonitorWarning",
    "NoLossError",
    "NoTermsError",
    "NotConvergedError",
    "NotFiniteWarning",
    "NothingChosenError",
    "Operator",
    "OptionError",
    "OptionTypeError",
    "ProofError",
    "RankError",
    "Result",
    "RuleError",
    "RuleWarning",
    "ScipyMissingError",
    "Spectrum",
    "Total",
    "TotalWarning",
    "UnsupportedOpError",
    "UnusedParametersWarning",
    "UsesNotJoinedError",
    "Verification",
    "__version__",
    "accumulate",
    "bootstrap",
    "compile",
    "curvature",
    "ekfac",
    "operator",
    "optim",
    "report",
    "shard",
    "spectrum",
]


def __dir__() -> list[str]:
    """What is for users, without the modules that it comes from."""
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})


warn_if_untried(torch.__version__)

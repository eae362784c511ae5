"""Products with whole curvature matrices: `hbp.operator`."""

from hbpcompiler.operators.krylov import Eigenpairs
from hbpcompiler.operators.operator import KINDS, Operator, operator

__all__ = ["KINDS", "Eigenpairs", "Operator", "operator"]

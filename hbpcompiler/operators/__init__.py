"""Products with whole curvature matrices: `hbp.operator`."""

from hbpcompiler.operators.krylov import Eigenpairs
from hbpcompiler.operators.operator import Operator, operator
from hbpcompiler.operators.options import KINDS

__all__ = ["KINDS", "Eigenpairs", "Operator", "operator"]

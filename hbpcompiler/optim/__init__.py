"""Training with curvature: a preconditioner for any optimizer of torch, and optimizers of its own."""

from hbpcompiler.operators.conjugate_gradients import Solution, conjugate_gradients
from hbpcompiler.optim.block_newton import BlockNewton
from hbpcompiler.optim.diagonal import Diagonal
from hbpcompiler.optim.kfac import EKFAC, KFAC, KFLR, KFRA
from hbpcompiler.optim.newton import Newton
from hbpcompiler.optim.preconditioner import Preconditioner

__all__ = ["EKFAC", "KFAC", "KFLR", "KFRA", "BlockNewton", "Diagonal", "Newton", "Preconditioner", "Solution",
           "conjugate_gradients"]

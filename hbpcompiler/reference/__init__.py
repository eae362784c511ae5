"""Every quantity by brute force: slow autograd loops that follow the definitions, for the tests and the demo.

Nothing here is shared with the compiler. Whatever the loss divides by, sample n's share of L is l_n / N for a mean
loss and l_n for a summed one; the share's gradient is what flows back from sample n's slice of the output alone.
Memory and time grow with the square of the parameter count: small models in float64 only.
"""

from .factors import kfac_emp, kflr, kfra
from .forward import Forward, Inputs, Loss, Weighted, derivative, jacobian
from .quantities import clipped_grad, ggn_block, hessian_block, reference, relative_error

__all__ = [
    "Forward", "Inputs", "Loss", "Weighted", "clipped_grad", "derivative", "ggn_block", "hessian_block", "jacobian",
    "kfac_emp", "kflr", "kfra", "reference", "relative_error",
]

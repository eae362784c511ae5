"""A rule file: all that the compiler has to know about torch.asinh."""

from hbpcompiler.elementwise import elementwise, sympy, x

ASINH = elementwise("aten.asinh", sympy.asinh(x), forward=lambda op: op.self.asinh())

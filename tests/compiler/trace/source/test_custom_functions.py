"""Whose forward a line stands in."""

import inspect

import torch

from hbpcompiler.compiler.trace.source.custom_functions import custom_function_at


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, slope):
        return 3 * slope


class Plain:
    def forward(self, x):
        return 2 * x


def test_the_class_whose_forward_holds_the_line_if_it_has_a_backward_too():
    forward, backward, plain = (inspect.getsourcelines(method)[1] + 2 for method in (
        Doubled.forward, Doubled.backward, Plain.forward))
    assert custom_function_at(__file__, forward) == "Doubled"
    assert custom_function_at(__file__, backward) == ""
    assert custom_function_at(__file__, plain) == ""
    assert custom_function_at("a cell", 1) == ""

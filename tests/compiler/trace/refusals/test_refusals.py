"""Models and losses that cannot be compiled: each error names the line of the code, what is wrong there, and what to
write instead."""

import functools
import inspect
import threading

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.compiler.trace.refusals.refusals import CannotFollowError, classes_given, refusals
from tests.selection import few

X, Y = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 1, 0])

GENERATOR, COUNTED = torch.Generator(), [torch.zeros(1)]


class Faulty(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.head, self.scale, self.function = nn.Linear(3, 2), nn.Parameter(torch.ones(2)), function
        self.head.masks = {}

    def forward(self, x):
        return self.function(self, x)


def head(model, x):
    return model.head(x) * model.scale


def number_of_values(model, x):
    return head(model, x) * x.max().item()


def plain_number_of_values(model, x):
    largest = float(x.max())
    return head(model, x) * largest


def steps_by_values(model, x):
    return head(model, x) * sum(range(int(x.abs().sum())))


def branch(model, x):
    if x.sum() > 0:
        return head(model, x)
    return -head(model, x)


def until(model, x):
    while x.norm() > 1:
        x = x / 2
    return head(model, x)


def by_numpy(model, x):
    return head(model, torch.from_numpy(np.sin(x.numpy())))


def loop(model, x):
    return torch.stack([head(model, row) for row in x])


def counted_loop(model, x):
    return torch.stack([head(model, x[i]) for i in range(x.shape[0])])


def numpys_size(model, x):
    return head(model, x) * np.float64(x.shape[0])


def literal(model, x):
    return head(model, x).view(2, 2)


def picked(model, x):
    return head(model, x)[x[:, 0] > 0].median() + head(model, x)


def shifted(model, x):
    return head(model, x).masked_scatter(x[:, :2] > 0, x[:, 1:])


def own_draws(model, x):
    return head(model, x) + torch.rand(2, generator=torch.Generator().manual_seed(0))


def mixed(model, x):
    return head(model, x).softmax(0)


def inner_gradient(model, x):
    x = x.detach().requires_grad_()
    return torch.autograd.grad(head(model, x).square().sum(), x, create_graph=True)[0][:, :2]


def inner_backward(model, x):
    head(model, x).sum().backward()
    return head(model, x)


def inner_transform(model, x):
    return torch.func.vmap(torch.func.grad(lambda row: head(model, row).square().sum()))(x)[:, :2]


def new_tensor(model, x):
    return head(model, x) * torch.tensor([x.mean(), 1.0])


def data(model, x):
    model.scale.data = model.scale.data.clamp(0)
    return head(model, x)


def changed_data(model, x):
    model.scale.data.mul_(2)
    return head(model, x)


def unbound(model, x):
    return torch.stack([2 * row for row in head(model, x).unbind(0)])


def changed_parameter(model, x):
    with torch.no_grad():
        model.scale.mul_(2)
    return head(model, x)


def listed(model, x):
    return head(model, x) * torch.tensor(x[:, 0].tolist())[:, None]


def written(model, x):
    made = head(model, x)
    model.head.note = f"{made.mean().item():.2f}"
    return made


def first(model, x):
    made = head(model, x)
    made[0] = 0.0
    return made


def cut(model, x):
    made = head(model, x)
    ends = made.chunk(2)
    return made + ends[0].mul(ends[1])


def literal_product(model, x):
    return head(model, x).view(8, 1).view(4, 2)


def drawn_around(model, x):
    return torch.normal(head(model, x), 0.1)


def drawn_as_wide(model, x):
    return torch.normal(0.0, std=model.scale.abs()) * model.head(x)


def differences(model, x):
    return torch.gradient(head(model, x), dim=1)[0]


def least_squares(model, x):
    made = head(model, x)
    return torch.linalg.lstsq(made[:, :, None], made[:, :, None]).solution.flatten(1) * made


def mapped(model, x):
    return torch.vmap(lambda row: row * 2.0)(head(model, x))


def mapped_layer(model, x):
    return torch.vmap(lambda row: model.head.weight @ row)(x)


def nothing(model, x):
    head(model, x)


def plain_number(model, x):
    return 3.0


def own_draws_of_each(model, x):
    return head(model, x) * torch.rand(x.shape[0], 1, generator=GENERATOR)


def own_draws_in_place(model, x):
    return head(model, x) * torch.empty(2).normal_(generator=GENERATOR)


def cached(model, x):
    length = x.shape[0]
    if length not in model.head.masks:
        model.head.masks[length] = torch.ones(length, 1)
    return head(model, x) * model.head.masks[length]


@functools.cache
def ones(length):
    return torch.ones(length, 1)


def remembered(model, x):
    return head(model, x) * ones(x.shape[0])


def counted(model, x):
    return head(model, x) * COUNTED[0].add_(1)


def misspelled(model, x):
    return model.haed(x)


def several(model, x):
    return head(model, x), x


def by_name(model, x):
    return {"logits": head(model, x)}


def decided(model, x):
    return head(model, x).argmax(1)


def packed(model, x):
    raise ValueError("no good at all")


VALUES = "values"
MODELS = [
    (number_of_values, "x.max().item()", ["keep it a tensor"]),
    (plain_number_of_values, "float(x.max())", [VALUES, "keep it a tensor"]),
    (steps_by_values, "int(x.abs().sum())", [VALUES]),
    (branch, "if x.sum() > 0:", [VALUES, "torch.where"]),
    (until, "while x.norm() > 1:", [VALUES]),
    (by_numpy, "np.sin", ["numpy", "write it in torch"]),
    (loop, "for row in x", ["fixes the batch's size", "loop over samples"]),
    (counted_loop, "in range(x.shape[0])", ["fixes the batch's size"]),
    (numpys_size, "np.float64(x.shape[0])", ["fixes the batch's size"]),
    (literal, ".view(2, 2)", ["another batch size"]),
    (picked, "[x[:, 0] > 0]", ["picks samples"]),
    (shifted, "masked_scatter(", ["torch.where(mask, source, x)"]),
    (own_draws, "torch.rand(", ["a generator of your own", "without generator="]),
    (own_draws_of_each, "torch.rand(", ["a generator of your own", "without generator="]),
    (own_draws_in_place, ".normal_(", ["a generator of your own", "without generator="]),
    (cached, "if length not in model.head.masks", ["by the batch's size", "anew at each call"]),
    (remembered, "ones(x.shape[0])", ["by the batch's size", "anew at each call"]),
    (counted, "", ["writes in place", "register_buffer"]),
    (mixed, ".softmax(0)", ["mixes samples"]),
    (inner_gradient, "torch.autograd.grad(", ["a derivative is taken inside"]),
    (inner_backward, ".backward()", ["a derivative is taken inside"]),
    (inner_transform, "torch.func.grad(", ["a derivative is taken inside"]),
    (new_tensor, "torch.tensor([x.mean(), 1.0])", ["a number is made"]),
    (data, "model.scale.data = ", ["w = w.clamp(0)"]), (changed_data, "", ["'scale'", "in place"]),
    (unbound, ".unbind(0)", ["fixes the batch's size"]),
    (changed_parameter, "model.scale.mul_(2)", ["'scale'", "in place"]),
    (listed, "x[:, 0].tolist()", ["a list of Python's", "keep them in a tensor"]),
    (written, "model.head.note = f", ["a text of a tensor's value", "print(t)"]),
    (first, "made[0] = 0.0", ["puts values at samples"]),
    (cut, "ends[0].mul(ends[1])", ["cuts the samples into parts"]),
    (literal_product, ".view(8, 1)", ["fixes the batch's size", "-1 for that axis"]),
    (drawn_around, "torch.normal(", ["mean + std * torch.randn_like(mean)"]),
    (drawn_as_wide, "torch.normal(", ["zero", "mean + std * torch.randn_like(mean)"]),
    (differences, "torch.gradient(", ["with slices"]),
    (least_squares, "torch.linalg.lstsq(", ["torch.linalg.solve"]),
    (mapped, "torch.vmap(", ["for the whole batch"]),
    (mapped_layer, "", ["torch.vmap", "for the whole batch"]),
    (nothing, "", ["NoneType", "return"]),
    (plain_number, "", ["float"]),
    (misspelled, "model.haed(x)", ["haed"]),
    (several, "", ["output[0]"]),
    (by_name, "", ["output['logits']"]),
    (decided, "", ["whole numbers", "logits"]),
    (packed, "raise ValueError", ["no good at all"]),
]


def line_of(function, text):
    lines, first = inspect.getsourcelines(function)
    return f"test_refusals.py:{first + next(number for number, line in enumerate(lines) if text in line)}"


@pytest.mark.parametrize(("function", "code", "words"), MODELS, ids=lambda item: getattr(item, "__name__", ""))
def test_models(function, code, words):
    x, y = (X[:2], Y[:2]) if function is literal else (X, Y)
    with pytest.raises(hbp.CompileError) as caught:
        hbp.compile(Faulty(function), quantities=["grad"])(x, y)
    message = str(caught.value)
    for word in (*words, *([line_of(function, code), code] if code else [])):
        assert word in message, message
    assert "/torch/" not in message, message


LOSSES = [
    (lambda o, y: F.cross_entropy(o, y, reduction="none"), Y, ["[N]", "reduction='mean'"]),
    (lambda o, y: (F.cross_entropy(o, y), o), Y, ["tuple", "alone"]),
    (lambda o, y: F.cross_entropy(o, y).item(), Y, ["leave .item()"]),
    (lambda o, y: None, Y, ["NoneType", "return"]),
    (lambda o, y: torch.fft.fft(o).square().mean(), Y, ["torch.complex64", "a real number"]),
    (lambda o: o.sum(), Y, ["cannot be called with (output, target)"]),
    (lambda o, y: (o.argmax(1) != y).float().mean(), Y, ["argmax in the loss", "o.argmax(1) != y"]),
    (lambda o, y: F.cross_entropy(o, y).sqrt(), Y, ["test_refusals.py", "curved"]),
    (nn.CrossEntropyLoss(), Y.to(torch.int32), ["torch.int32", "y.long()"]),
    (nn.CrossEntropyLoss(), Y.double(), ["torch.float64", "y.long()"]),
    (lambda o, y: F.mse_loss(o, F.one_hot(y).float()), Y, ["test_refusals.py", "F.one_hot(y, num_classes=10)"]),
    (lambda o, y: torch.stack([o.mean(), o.sum()]).max(), Y, ["add losses up, as in a + b"]),
    (lambda o, y: F.huber_loss(o, o.detach(), delta=1 / len(o)), Y, ["test_refusals.py", "delta=1 / len(o)", "eps"]),
    (nn.BCEWithLogitsLoss(), torch.ones(4, 2, dtype=torch.long), ["torch.int64", "y.float()"]),
]


@few(4, "further cases of one kind")
@pytest.mark.parametrize(("loss", "y", "words"), LOSSES)
def test_losses(loss, y, words):
    with pytest.raises(hbp.CompileError) as caught:
        hbp.compile(Faulty(head), loss, quantities=["grad"])(X, y)
    for word in words:
        assert word in str(caught.value), caught.value


def test_before_any_batch():
    with pytest.raises(hbp.CompileError, match=r"the class CrossEntropyLoss itself"):
        hbp.compile(Faulty(head), nn.CrossEntropyLoss, quantities=["grad"])
    with pytest.raises(hbp.CompileError, match=r"call the model on a batch once(.|\n)*0.weight"):
        hbp.compile(nn.Sequential(nn.LazyLinear(2)), quantities=["grad"])
    with pytest.raises(hbp.CompileError, match=r"torch.jit.script(.|\n)*  - 1$"):
        hbp.compile(nn.Sequential(nn.Linear(3, 2), torch.jit.script(nn.Tanh())), quantities=["grad"])


def test_torch_is_as_before():
    before = torch.autograd.grad, torch.Tensor.numpy, torch.SymInt.__index__, "numpy" in vars(torch.Tensor)
    one_hot = F.one_hot
    with refusals([]), classes_given():
        assert F.one_hot(torch.tensor([1]), 2).tolist() == one_hot(torch.tensor([1]), 2).tolist()
        assert torch.autograd.grad is not before[0]
    assert before == (torch.autograd.grad, torch.Tensor.numpy, torch.SymInt.__index__, "numpy" in vars(torch.Tensor))
    assert F.one_hot is one_hot


def test_a_target_that_makes_the_loss_of_another_dtype():
    """The loss casts its number then, which is not what there is to mend."""
    with pytest.raises(hbp.InputError, match=r"y has dtype torch.float16.* y.to\(torch.float32\)"):
        hbp.compile(nn.Linear(3, 2), nn.BCEWithLogitsLoss(), ["grad"])(X, torch.zeros(4, 2).half())


def test_other_threads_go_on_as_ever():
    """While one thread traces, others take derivatives, and hand tensors to numpy, as a loader does."""
    found = []

    def train():
        x = torch.ones(3, requires_grad=True)
        found.append([float(part) for part in torch.autograd.grad(x.square().sum(), x)[0]])
        found.append(x.detach().numpy().tolist())
        found.append(F.one_hot(torch.tensor([0, 2])).shape)

    with refusals([]), classes_given():
        with pytest.raises(CannotFollowError, match="derivative"):
            torch.autograd.grad(X.sum(), X)
        thread = threading.Thread(target=train)
        thread.start()
        thread.join()
    assert found == [[2.0, 2.0, 2.0], [1.0, 1.0, 1.0], (2, 3)]


class Doubled(nn.Linear):
    def forward(self, x):
        h = super().forward(x)
        return 2 * h if (h.sum() > 0).item() else h


def test_a_branch_on_a_number_is_no_mask():
    with pytest.raises(hbp.CompileError, match=r"control flow depends on the values of tensors"):
        hbp.compile(Doubled(4, 3), quantities=["grad"])(torch.randn(2, 4), torch.tensor([0, 2]))


@pytest.mark.parametrize("forward", [lambda x: x * torch.ones(8, 1), lambda x: x + torch.ones(8, 4)])
def test_a_literal_size_is_said(forward):
    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(4, 3)

        def forward(self, x):
            return self.head(forward(x))

    with pytest.raises(hbp.CompileError, match=r"fix the batch's size, 8: write x\.shape\[0\], or -1"):
        hbp.compile(Fixed(), quantities=["grad"])(torch.randn(8, 4), torch.randint(3, (8,)))

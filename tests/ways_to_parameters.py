"""One network, whose parameters a forward pass reaches in each way that people write, and some that act behind it."""

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


class TanhOfProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return torch.tanh(x @ w)

    @staticmethod
    def backward(ctx, slope):
        x, w = ctx.saved_tensors
        inner = slope * (1 - torch.tanh(x @ w) ** 2)
        return inner @ w.T, x.T @ inner


class Net(nn.Module):
    """By attributes, as most do."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 3)
        self.several = nn.ParameterList([nn.Parameter(torch.randn(4, 4)) for _ in range(2)])
        self.named = nn.ParameterDict({"u": nn.Parameter(torch.randn(4, 4))})
        self.double()
        self.keep()

    def keep(self):
        """Beside where torch looks for it."""

    def weights(self):
        return [self.a.weight, *self.several, self.named["u"]]

    def forward(self, x):
        for weight in self.weights():
            x = torch.tanh(x @ weight)
        return self.b(self.a(x))


class InAList(Net):
    def keep(self):
        self.plain = [self.a.weight, *self.several, self.named["u"]]

    def weights(self):
        return self.plain


class InAClosure(Net):
    def keep(self):
        own = [self.a.weight, *self.several, self.named["u"]]
        self.weights = lambda: own


class PastModules(Net):
    """Not all of them, and one in other ways, too."""

    def keep(self):
        object.__setattr__(self, "same", self.a.weight)

    def weights(self):
        return [self.same, self.a.weight, *self.several, self.named["u"]]


class Sliced(Net):
    def weights(self):
        return [self.a.weight, *self.several[:1], *self.several[1:], *self.named.copy().values()]


class OnlyParameters(Net):
    def weights(self):
        return [weight if isinstance(weight, nn.Parameter) else weight.detach() for weight in super().weights()]


class ByType(Net):
    def weights(self):
        return [weight if type(weight) is nn.Parameter else weight.detach() for weight in super().weights()]


class Got(Net):
    def weights(self):
        return [self.get_parameter(name) for name in ("a.weight", "several.0", "several.1", "named.u")]


class Seen(Net):
    """Through views that were made once."""

    def keep(self):
        self.views = [weight.t() for weight in super().weights()]

    def weights(self):
        return [view.t() for view in self.views]


class ToAFunction(InAList):
    """That torch has no forward mode of."""

    def forward(self, x):
        for weight in self.weights():
            x = TanhOfProduct.apply(x, weight)
        return self.b(self.a(x))


class ByFunction(Net):
    """Through whose nodes `.backward()` goes in a step."""

    def forward(self, x):
        for weight in self.weights():
            x = TanhOfProduct.apply(x, weight)
        return self.b(self.a(x))


class WithoutInfluence(InAList):
    """So far: the derivatives in what is listed are zero at this batch."""

    def keep(self):
        super().keep()
        with torch.no_grad():
            self.b.weight.zero_()


class CallsBackward(torch.autograd.Function):
    """As a reversible block does: what is inside is not part of the graph."""

    @staticmethod
    def forward(ctx, x, model):
        ctx.save_for_backward(x)
        ctx.model = model
        return torch.tanh(x @ model.weights()[0])

    @staticmethod
    def backward(ctx, slope):
        (x,) = ctx.saved_tensors
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            torch.tanh(x @ ctx.model.weights()[0]).backward(slope)
        return x.grad, None


class Reversible(InAList):
    def forward(self, x):
        return self.b(CallsBackward.apply(self.a(x), self))


class Recomputed(Net):
    def forward(self, x):
        return self.b(checkpoint(lambda h: torch.tanh(h @ self.several[0]), self.a(x), use_reentrant=True))


class RecomputedOfAList(InAList):
    def forward(self, x):
        return self.b(checkpoint(lambda h: torch.tanh(h @ self.plain[1]), self.a(x), use_reentrant=True))


class Renormed(nn.Module):
    """torch writes into the weight in each pass."""

    def __init__(self):
        super().__init__()
        self.first = nn.Embedding(6, 4, max_norm=0.5)
        self.last = nn.Linear(4, 3)

    def forward(self, x):
        return self.last(torch.tanh(self.first(x)).mean(1))


class Flattened(nn.LSTM):
    """cuDNN is asked for nothing on a CPU; this notes whose memory it would move."""

    def flatten_parameters(self):
        pointers = {each.data_ptr() for each in self._flat_weights}
        vars(self).setdefault("pointers", []).append(pointers)


def used_once(way):
    """Without the layer that shares a weight."""
    class Once(way):
        def forward(self, x):
            for weight in self.weights():
                x = torch.tanh(x @ weight)
            return self.b(x)

    return Once


BY_MODULES = [Net, Sliced, OnlyParameters, Got, ByFunction]
OTHERWISE = [InAList, InAClosure, PastModules, Seen, ToAFunction, WithoutInfluence]
WAYS = [*BY_MODULES, *OTHERWISE, ByType]

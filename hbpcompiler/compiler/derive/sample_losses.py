"""The losses l_n as a function of what the loss reads where it ends.

L = (1/N) sum_n l_n of a mean, sum_n l_n of a sum, and l_n = sum_i c_i l_in + r: each reduction's own l_in by its rule,
times what `endings` finds it multiplied by, and a number that the loss adds to them, which all samples share alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import fx

from hbpcompiler.compiler.match.losses.endings import adds_nothing, multiples, slopes
from hbpcompiler.compiler.match.matched import Matched
from hbpcompiler.compiler.match.operation.bind import bind
from hbpcompiler.compiler.program import meta
from hbpcompiler.compiler.program.weighted_loss import LOSSES
from hbpcompiler.compiler.program.writer import Writer
from hbpcompiler.compiler.trace.fx_graph.numbers import arithmetic
from hbpcompiler.compiler.trace.graph import Operation
from hbpcompiler.rule import LossRule, Op
from hbpcompiler.rule.composite import Composite

ABOUT = "Losses l_n of the samples [N], with L = "


class SampleLosses:
    """The function and, as proxies, the tensors that it is called with."""

    def __init__(self, matched: Matched, ops: Mapping[str, Op]) -> None:
        self.matched, self.ops = matched, ops
        self.writer = Writer()
        self._given: dict[fx.Node, Any] = {}
        self._batched: dict[fx.Node, bool] = {}
        self.tensors: list[Any] = []
        kind = matched.ending.kind
        first = self._op(matched.ending.reductions[0])
        rule = self._rule(matched.ending.reductions[0])
        self.batch = getattr(first, rule.input).shape[0]
        self.writer.graph.output(self._losses(kind).node)
        self._drop_unread()
        about = ABOUT + ("sum_n l_n." if kind == "sum" else "(1/N) sum_n l_n.")
        self.function = Composite(LOSSES, self.writer.graph,
                                  [self._batched[tensor.node] for tensor in self.tensors], (),
                                  matched.graph.loss.dtype, True, about)

    def _losses(self, kind: str) -> Any:
        graph, rules, known = self.matched.graph, self.matched.rules, self.matched.ending.multiples
        plain = all(isinstance(multiple, float) for multiple in known.values())
        live = known if plain else multiples(graph, rules, self._op, self.batch, kind, self._one())
        total: Any = None
        for operation in self.matched.ending.reductions:
            each = self._rule(operation).each
            assert each is not None
            found = each(self._op(operation))
            factor = known[operation.name] if isinstance(known[operation.name], float) else live[operation.name]
            found = found if isinstance(factor, float) and factor == 1 else found * factor
            total = found if total is None else total + found
        if adds_nothing(graph, rules):
            return total
        rest = self._read(self.ops[graph.loss.name].output)
        for name, slope in slopes(graph, rules, self._op, self._one()).items():
            rest = rest - self._read(self.ops[name].output) * slope
        return total + (rest / self.batch if kind == "sum" else rest)

    def _one(self) -> Any:
        """What is sent back from the loss; a tensor where a number of another dtype would leave it less exact."""
        tail, dtype = self.matched.ending.tail, self.matched.graph.loss.dtype
        if all(value.dtype == dtype for operation in tail for value in operation.tensors.values()):
            return 1.0
        return self._read(self.ops[tail[-1].name].output).new_ones(())

    def _drop_unread(self) -> None:
        """What was made on the way and nothing reads, and the arguments that nothing reads then."""
        self.writer.graph.eliminate_dead_code()
        for node, holder in list(self._given.items()):
            if not holder.node.users:
                self.writer.graph.erase_node(holder.node)
                self.tensors = [tensor for tensor in self.tensors if tensor.node is not node]

    def _rule(self, operation: Operation) -> LossRule:
        rule = self.matched.rules[operation.name]
        assert isinstance(rule, LossRule)
        return rule

    def _op(self, operation: Operation) -> Op:
        """The operation inside the function."""
        outer = self.ops[operation.name]

        def tensors(name: str) -> Any:
            return self._read(outer.argument(name), outer.has_samples(name))

        return bind(operation, tensors, self.matched.active,
                    number=lambda name, expression: arithmetic(expression, self.batch))

    def _read(self, outer: Any, batched: bool = False) -> Any:
        """A tensor of the program as an argument of the function."""
        if not isinstance(outer, fx.Proxy):
            return outer
        if outer.node not in self._given:
            wish = meta.hint(outer.node) or outer.node.name
            self._given[outer.node] = self.writer.placeholder(wish)
            self.tensors.append(outer)
            self._batched[outer.node] = batched
        return self._given[outer.node]



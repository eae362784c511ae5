"""The state of the backward half of stage 4: what has arrived where while the plan's steps are carried out.

The steps themselves are functions of this state, a file for each kind; `carry_out` holds the table of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cache, cached_property
from typing import Any

import torch

from hbpcompiler.compiler.match.matched import Matched
from hbpcompiler.compiler.plan.formulas import SECOND, Formulas, formulas
from hbpcompiler.compiler.plan.planned import Plan
from hbpcompiler.compiler.plan.precision import Precision
from hbpcompiler.compiler.plan.steps import BEFORE_MEAN, PREFIX, Piece, Pull, Step, Total, title
from hbpcompiler.compiler.program.weights import Weights, weighted
from hbpcompiler.compiler.program.writer import Writer, named
from hbpcompiler.compiler.routes import COLUMNS, MATRIX
from hbpcompiler.compiler.trace.graph import Operation, Value
from hbpcompiler.quantities import KFRA, Closing
from hbpcompiler.rule import Op, Rule
from hbpcompiler.rule.bilinear import columns_to

Leaving = Callable[[Operation, str, Any], Any]
"""What else is done to columns on their way from an operation to its input."""


def unchanged(operation: Operation, slot: str, columns: Any) -> Any:
    """Nothing else is done to columns on their way."""
    return columns


class Backward:
    """What has arrived where.

    `columns` maps (value, piece) to a proxy: columns [N, K, *z], a diagonal [N, *z] or KFRA's matrix [h, h]. `signs`
    are [N, K], by piece. `closed` collects, for each parameter, its closings, `totals` those of each group of
    parameters.
    """

    def __init__(self, matched: Matched, plan: Plan, writer: Writer, ops: Mapping[str, Op], batch: Any,
                 handlers: Mapping[type, Callable[[Backward, Any], None]], *,
                 columns: Mapping[tuple[str, str], Any] | None = None, signs: Mapping[str, Any] | None = None,
                 slopes: Mapping[str, Any] | None = None, leaving: Leaving = unchanged,
                 known_formulas: Mapping[str, Formulas] | None = None, keys: Callable[[], Any] | None = None,
                 steps: Sequence[Step] | None = None) -> None:
        self.steps = plan.steps if steps is None else steps
        """Those that are carried out in this graph, beside each other."""
        self.matched, self.plan, self.writer, self.ops, self.batch = matched, plan, writer, ops, batch
        self.precision = Precision(plan.curvature_dtype)
        self.columns = dict(columns or {})
        self.signs = dict(signs or {})
        self.closed: dict[str, dict[Closing, Any]] = {}
        self.totals: dict[str, dict[Closing, Any]] = {}
        self.closed_of_batch: dict[Closing, Any] = {}
        """What quantities of the whole batch are made of."""
        self.sums: dict[Total, Any] = {}
        """What has been added up over parameters so far, for a second phase."""
        self.weighing: dict[Total, Any] = {}
        """The samples' weights of a second phase, [N], made of a complete total."""
        self.pooled: dict[tuple[str, str], tuple[Any, Any]] = {}
        """The columns behind a pool as they were before it, and the positions that the pool took."""
        self.positions: dict[tuple[str, str], tuple[int, ...]] = {}
        """Where columns are those of each position alone, [N, *d, k, C], until a loop takes them: d."""
        self.multiples: dict[str, Any] = {}
        """By reduction, what its part of the loss is multiplied by."""
        self.noise: dict[str, Any] = {}
        """The random signs of a piece's columns, the same at every value that it has reached."""
        self.weights: Weights | None = None
        """What is made of the call argument `sample_weights`; None where there is none."""
        self.bounds: Mapping[str, Any] = {}
        """By total, what its norms are clipped to."""
        self.arguments: Mapping[str, Any] = {}
        """The call arguments, by name."""
        self.parameters: Mapping[str, Any] = {}
        """By name, in the program's own graph."""
        self.bases_of: Mapping[str, tuple[Any, Any]] = {}
        """By parameter, the bases that a call gives, Q_A (or None) and Q_B: in the program's own graph."""
        self._outside: Callable[[Any], Any] = lambda proxy: proxy
        """From the program's own graph to this one, for a tensor that is whole in it."""
        self._in_loop = False
        self.leaving = leaving
        self._slopes = slopes or {}
        self._handlers = handlers
        self._formulas = known_formulas
        self._keys, self._drawn = keys, Counter[int]()

    def inside(self, writer: Writer, ops: Mapping[str, Op], whole: Callable[[Any], Any], *,
               columns: Mapping[tuple[str, str], Any] | None = None, signs: Mapping[str, Any] | None = None,
               slopes: Mapping[str, Any] | None = None, leaving: Leaving = unchanged, batch: Any = None,
               keys: Callable[[Any], Any] | None = None, steps: Sequence[Step] = ()) -> Backward:
        """The same backward pass inside a loop: its own graph, the operations bound to this chunk's tensors.

        `whole` takes a tensor into that graph as it is.

        It starts with what it is given: `columns` and `signs` that are in this chunk, `slopes`, the local derivatives
        that are known already, and `batch`, how many samples it has; None: those of the pass around it. `keys` takes
        the samples' keys into the loop, which those need that draw in it.
        """
        made = Backward(self.matched, self.plan, writer, ops, self.batch if batch is None else batch, self._handlers,
                        columns=columns, signs=signs, slopes=slopes, leaving=leaving,
                        known_formulas=self._formulas, steps=steps,
                        keys=None if keys is None else cache(lambda: keys(self.draw_keys())))
        made._in_loop = True
        made.bases_of, made._outside = self.bases_of, lambda proxy: whole(self._outside(proxy))
        return made

    def bases(self, parameter: str) -> tuple[Any, Any]:
        """The bases that a call gives for a parameter, in this graph."""
        inner, outer = self.bases_of[parameter]
        return None if inner is None else self._outside(inner), self._outside(outer)

    def draw_keys(self) -> Any:
        """[N] whole numbers that random signs follow from, drawn once for the program: they do not depend on how
        it is cut into loops."""
        if self._keys is None:
            assert not self._in_loop, "a loop that draws takes the samples' keys"
            device = next(iter(self.parameters.values())).device
            drawn = named(self.writer.call(torch.randint, 0, 2**62, (self.batch,), device=device), "keys")
            self._keys = lambda: drawn
        return self._keys()

    def number_of_draw(self, place: str, born: bool) -> int:
        """Another one for each draw, the same in every plan: by the operation where a residual is `born`, or where
        columns arrive."""
        number = 64 * list(self.matched.graph.makers).index(place) + (32 if born else 0)
        self._drawn[number] += 1
        return number + self._drawn[number] - 1

    def heading(self, operation: Operation, second: bool = False) -> tuple[str, str, str, str]:
        """Of an operation's block in the backward part, or in its second phase: its title, the part, its formula, that
        in loops."""
        if second:
            return title(operation), "backward", SECOND, SECOND
        if self._formulas is None:
            self._formulas = formulas(self.plan.steps, self.matched)
        found = self._formulas.get(operation.name, Formulas())
        return title(operation), "backward", found.outside, found.in_loops

    def carry_out(self, step: Step) -> None:
        """Write one step."""
        self._handlers[type(step)](self, step)

    def arrive(self, value: Value, piece: Piece, columns: Any) -> None:
        """Columns add up where a value fans out, as gradients do."""
        key = (value.name, piece.name)
        columns = self.rounded(columns, value, piece)
        total = self.columns[key] + columns if key in self.columns else columns
        prefix = BEFORE_MEAN if piece.stream == KFRA and piece.form != MATRIX else PREFIX[piece.stream]
        self.columns[key] = named(total, f"{prefix}_{self.matched.names[value.name]}")

    def rounded(self, columns: Any, value: Value, piece: Piece) -> Any:
        """Columns in the dtype of curvature, once they have left the loss."""
        maker = self.matched.graph.makers.get(value.name)
        in_loss = maker is not None and maker.source.in_loss
        return columns if in_loss else self.precision.rounded(columns, piece)

    def weighted(self, tensor: Any, root: bool = False, average: bool = False) -> Any:
        """[N, ...] times the samples' weights, if a call gives some; their roots, or those that are 1 on average."""
        assert not self._in_loop, "a chunk of samples has no weights: they are multiplied with before it is cut"
        if self.weights is None:
            return tensor
        return weighted(tensor, self.weights.factors(root, average))

    def set_signs(self, piece: Piece, signs: Any, columns: Any, place: str) -> None:
        """The signs of a piece, born at the value of this name, that may have some; None: all +, for these columns."""
        if piece.signed:
            signs = columns.new_ones(columns.shape[:2]) if signs is None else signs
            self.signs[piece.name] = named(signs, f"sign_{self.matched.names[place]}")

    def signs_like(self, columns: Any, piece: Piece) -> Any:
        """The signs of a piece in the dtype of its columns, which change theirs at casts."""
        signs = self.signs.get(piece.name)
        return signs.type_as(columns) if signs is not None and self.matched.mixed else signs

    def rule_of(self, operation: Operation) -> Rule:
        rule = self.matched.rules[operation.name]
        assert isinstance(rule, Rule)
        return rule

    def is_single(self, piece: Piece) -> bool:
        """Whether it is one column per sample, in the dtype of the values that it meets."""
        return piece.form == COLUMNS and piece.columns == 1 and not self.precision.changes(piece)

    @cached_property
    def crossed_by_many(self) -> frozenset[tuple[str, str]]:
        """Where more columns than one of each sample cross an operation: its name and slot."""
        return frozenset((step.operation.name, step.slot) for step in self.steps
                         if isinstance(step, Pull) and not self.is_single(step.piece))

    def knows_slope(self, operation: Operation) -> bool:
        """Whether the local derivative is given."""
        return operation.name in self._slopes

    def jac_t(self, operation: Operation, slot: str) -> Callable[[Any], Any]:
        return columns_to(self.rule_of(operation), self.ops[operation.name], slot)

    def derivative(self, operation: Operation) -> Any:
        """The local derivative of an elementwise operation, [N, *z]."""
        if self.knows_slope(operation):
            return self._slopes[operation.name]
        rule = self.rule_of(operation)
        assert rule.derivative is not None
        return named(rule.derivative(self.ops[operation.name]), f"d_{self.matched.names[operation.name]}")

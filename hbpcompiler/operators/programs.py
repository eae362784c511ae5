"""The GGN's product as V (V^T v): two compiled programs, for as many vectors as there are at once."""

from __future__ import annotations

import glob
import warnings
from dataclasses import dataclass, field

import torch

from hbpcompiler.compiled import Compiled
from hbpcompiler.compiled import compile as compile_model
from hbpcompiler.compiler.trace.batch import Batch
from hbpcompiler.errors import ModelError, UnusedParametersWarning
from hbpcompiler.operators.passes import Passes
from hbpcompiler.operators.vectors import Columns

GROUP = "all"
ONTO, SUM = "project_ggn", "column_sum"


@dataclass
class Programs:
    """V has sqrt(c) J_n^T s_nk as its columns, so that G = V V^T. `project_ggn` is V^T v, `column_sum` V w."""

    passes: Passes
    _compiled: dict[str, Compiled] = field(default_factory=dict)
    """By quantity; made when they are first needed."""

    def times(self, number: int, batch: Batch, columns: Columns) -> Columns:
        """[F, *theta] each. Raises HbpError for models and losses that `hbp.compile` refuses."""
        parameters = dict(self.passes.model.named_parameters())
        frozen = [name for name in self.passes.chosen if not parameters[name].requires_grad]
        if frozen:
            raise ModelError(f"{', '.join(frozen)}: frozen after the operator was made, so that two programs leave out "
                             "what it is multiplied with; make the operator anew, or ask for blocks='passes'")
        args, keywords, target = batch.layout.build(batch.tensors)
        given = dict(zip(self.passes.chosen, columns, strict=True))
        call = keywords or args, target
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UnusedParametersWarning)
            with self.passes.drawn(number, batch):
                reaching = self._program(ONTO).names_in("directions", *call)
            with self.passes.drawn(number, batch):
                onto = self._program(ONTO)(*call, directions={name: given[name] for name in reaching}).project_ggn
            with self.passes.drawn(number, batch):
                sums = self._program(SUM)(*call, column_weights=dict(onto)).column_sum
        return [sums[name] if name in sums else torch.zeros_like(column) for name, column in given.items()]

    def _program(self, quantity: str) -> Compiled:
        if quantity not in self._compiled:
            names = [glob.escape(name) for name in self.passes.chosen]
            self._compiled[quantity] = compile_model(self.passes.model, self.passes.loss, [quantity],
                                                     groups={GROUP: names})
        return self._compiled[quantity]

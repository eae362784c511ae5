"""What calls that are alike do is counted once: the same counts and the same peaks as if each had run."""

import torch
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.compiler.cost.alike_counts import AlikeCounts
from hbpcompiler.compiler.cost.program_cost import ProgramCost


class Forgetful(dict):
    """Keeps nothing."""

    def __setitem__(self, key, value):
        pass


def model():
    layers = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(288, 20), nn.ReLU(),
              nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 4)]
    return nn.Sequential(*layers)


def test_counts_and_peaks_are_those_of_running_each_call():
    compiled = hbp.compile(model(), quantities=["batch_l2", "variance", "kfac", "diag_ggn"],
                           example_inputs=(torch.randn(4, 3, 14, 14), torch.randint(4, (4,))))
    draft = compiled._current().draft
    once, each = (ProgramCost(draft.graph, draft.cost.source) for _ in range(2))
    each._alike = AlikeCounts(each._meter, Forgetful())
    for batch, smooth in (2, False), (64, True), (100, False):
        assert once._counted(batch, smooth) == each._counted(batch, smooth)
    assert len(once._alike.known) > 20
    assert not each._alike.known

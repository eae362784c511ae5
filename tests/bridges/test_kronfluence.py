"""Scores beside kronfluence's, where that is installed: linear layers and convolutions with their biases."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import hbpcompiler as hbp
from hbpcompiler.bridges.influence import scores, self_scores

DTYPES = ("activation_covariance_dtype", "gradient_covariance_dtype", "eigendecomposition_dtype", "lambda_dtype",
          "per_sample_gradient_dtype")
SCORE_DTYPES = ("query_gradient_svd_dtype", "per_sample_gradient_dtype", "precondition_dtype", "score_dtype")


def measured(output, target):
    """How much larger the right class's logit is than all others together."""
    right = output.gather(1, target.unsqueeze(1)).squeeze(1)
    others = output.scatter(1, target.unsqueeze(1), -torch.inf)
    return (others.logsumexp(1) - right).sum()


def fitted(model, data, folder):
    """Their analyzer, with the EKFAC of the empirical Fisher of all these samples under the name "ekfac"."""
    from kronfluence.analyzer import Analyzer, prepare_model
    from kronfluence.arguments import FactorArguments
    from kronfluence.task import Task

    class Classification(Task):
        def compute_train_loss(self, batch, model, sample=False):
            return F.cross_entropy(model(batch[0]), batch[1], reduction="sum")

        def compute_measurement(self, batch, model):
            return measured(model(batch[0]), batch[1])

    task = Classification()
    analyzer = Analyzer("test", prepare_model(copy.deepcopy(model), task), task, cpu=True, output_dir=str(folder),
                        disable_tqdm=True, disable_model_save=True)
    analyzer.fit_all_factors("ekfac", data, per_device_batch_size=16, factor_args=FactorArguments(
        strategy="ekfac", use_empirical_fisher=True, **dict.fromkeys(DTYPES, torch.float64)))
    return analyzer


def theirs(model, data, queries, folder, low_rank):
    """Pairwise scores at full and at low rank, and self scores, [Q, N], [Q, N], [N], with a damping of 0.01."""
    from kronfluence.arguments import ScoreArguments

    analyzer = fitted(model, data, folder)
    dtypes = dict.fromkeys(SCORE_DTYPES, torch.float64)
    found = []
    for number, rank in enumerate((None, low_rank)):
        analyzer.compute_pairwise_scores(
            f"scores{number}", "ekfac", queries, data, per_device_query_batch_size=2, per_device_train_batch_size=16,
            score_args=ScoreArguments(damping_factor=0.01, query_gradient_low_rank=rank, use_full_svd=True, **dtypes))
        found.append(analyzer.load_pairwise_scores(f"scores{number}")["all_modules"])
    analyzer.compute_self_scores("self", "ekfac", data, per_device_train_batch_size=16,
                                 score_args=ScoreArguments(damping_factor=0.01, **dtypes))
    return [*found, analyzer.load_self_scores("self")["all_modules"]]


@pytest.mark.filterwarnings("ignore")
def test_scores_are_kronfluences(tmp_path):
    pytest.importorskip("kronfluence")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Tanh(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 5), nn.Tanh(),
                          nn.Linear(5, 4, bias=False)).double()
    data = TensorDataset(torch.randn(60, 1, 6, 6).double(), torch.randint(4, (60,)))
    queries = TensorDataset(torch.randn(4, 1, 6, 6).double(), torch.randint(4, (4,)))
    train = hbp.compile(model, quantities=["kfac_emp"], joint_bias=True)
    H = hbp.ekfac(model, nn.CrossEntropyLoss(), DataLoader(data, 16), columns="empirical", joint_bias=True,
                  progress=False)
    query = hbp.compile(model, measured, ["grad"])
    loaders = DataLoader(queries, 2), train, DataLoader(data, 16)
    options = {"damping": 0.01, "progress": False}
    whole, low, own = theirs(model, data, queries, tmp_path, 2)
    for right, rank in ((whole, None), (low, 2)):
        found = scores(H, query, *loaders, rank=rank, **options).values
        torch.testing.assert_close(found, right.double(), rtol=1e-6, atol=1e-7 * float(right.abs().max()))
    found = self_scores(H, train, loaders[2], **options).values
    torch.testing.assert_close(found, own.double(), rtol=1e-6, atol=1e-7 * float(own.abs().max()))

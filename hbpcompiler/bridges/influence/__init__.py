"""Influence functions: what each training sample did for each query, by curvature that `hbp.curvature` holds.

The score of training sample n for query q is

    s(q, n) = grad m_q^T (H + damping)^-1 grad l_n,

with m_q the query's measurement, any scalar of the model's output, l_n the sample's training loss and H the curvature
of the mean training loss (Koh & Liang 2017; with Kronecker factors: Grosse et al. 2023, section 3). To first order,
leaving sample n out of N and training to the end changes m_q by s(q, n) / N: where m is a loss, samples with positive
scores help.
"""

from hbpcompiler.bridges.influence.scores import Scores, scores, self_scores

__all__ = ["Scores", "scores", "self_scores"]

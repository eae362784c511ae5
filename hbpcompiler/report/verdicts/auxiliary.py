"""Verdicts on what is tracked beside the columns: signal to noise, batch sizes, stopping."""

from __future__ import annotations

from hbpcompiler.report.words import Verdict, number, share


def signal_to_noise(recent: float) -> Verdict:
    """The mean ratio of a gradient's square to its variance over samples (Liu et al. 2020)."""
    return Verdict(f"signal to noise {number(recent, 2)} of one sample's gradient")


def batch_size(suggested: float, rows: float | None) -> Verdict:
    """What CABS suggests (Balles, Romero, Hennig 2017, eq. 22)."""
    about = number(float(f"{suggested:.1e}"))
    if rows is None:
        return Verdict(f"CABS suggests a batch of about {about}")
    return Verdict(f"CABS suggests a batch of about {about}, the batch has {number(rows, 6)}")


def stopping(criterion: float, share_positive: float) -> Verdict:
    """The evidence-based criterion: above zero gradients are noise alone (Mahsereci et al. 2017, eq. 7)."""
    if criterion > 0:
        return Verdict(f"{number(criterion, 2)}, above zero: the gradient is within its noise, training may stop",
                       notable=True)
    if share_positive > 0:
        return Verdict(f"{number(criterion, 2)}, above zero in {share(share_positive)} of recent steps")
    return Verdict(f"{number(criterion, 2)}, below zero: the gradient is more than noise")

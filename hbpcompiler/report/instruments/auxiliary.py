"""What is tracked beside the columns: signal to noise, CABS, early stopping."""

from __future__ import annotations

from hbpcompiler.report.instruments.instrument import Drawn, Instrument, Line, drawn_lines
from hbpcompiler.report.tracks import Track
from hbpcompiler.report.verdicts import auxiliary


def _signal_to_noise(track: Track) -> Drawn | None:
    ratio = track.series("mean_gsnr")
    verdict = auxiliary.signal_to_noise(ratio.recent.median().item()) if len(ratio.recent) else None
    return drawn_lines([ratio], [verdict])


def _batch_size(track: Track) -> Drawn | None:
    suggested, rows = track.series("cabs"), track.rows
    verdict = None
    if len(suggested.recent):
        verdict = auxiliary.batch_size(suggested.recent.median().item(),
                                       rows.recent.median().item() if len(rows) else None)
    return drawn_lines([suggested], [verdict])


def _stopping(track: Track) -> Drawn | None:
    criterion = track.series("early_stopping")
    recent = criterion.recent
    verdict = auxiliary.stopping(recent.median().item(), (recent > 0).double().mean().item()) if len(recent) else None
    return drawn_lines([criterion], [verdict])


AUXILIARY = (
    Instrument(
        "mean_gsnr", "Signal to noise", ("mean_gsnr",),
        "Square of the gradient over the variance of the samples' gradients, in the mean over parameters. Large ratios "
        "go with good generalization.",
        "series", _signal_to_noise, (Line("mean ratio"),), {"log": True}),
    Instrument(
        "cabs", "Suggested batch size (CABS)", ("cabs",),
        "Step size times variance over loss: the batch that makes most of each sample for plain gradient descent.",
        "series", _batch_size, (Line("samples"),), {"log": True}),
    Instrument(
        "early_stopping", "Evidence for stopping", ("early_stopping",),
        "Above zero the gradient is no larger than its own noise: what is left to learn on this data is noise.",
        "series", _stopping, (Line("criterion"),), {"at": 0}),
)

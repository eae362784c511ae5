"""Spectra of the generalised Gauss-Newton matrix, over any group of parameters (`hbp.spectrum`)."""

from hbpcompiler.spectra.compiled import CompiledSpectrum, spectrum
from hbpcompiler.spectra.damping import bootstrap
from hbpcompiler.spectra.spectrum import Spectrum

__all__ = ["CompiledSpectrum", "Spectrum", "bootstrap", "spectrum"]

"""EKFAC of whole data sets, in two passes over the data."""

from hbpcompiler.ekfac.passes import ekfac

__all__ = ["ekfac"]

"""Reports: what runs were like, as one page of HTML."""

from hbpcompiler.report.writing import report

__all__ = ["report"]

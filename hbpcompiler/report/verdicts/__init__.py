"""Verdicts: small functions of numbers alone, which say in one line what an instrument shows."""

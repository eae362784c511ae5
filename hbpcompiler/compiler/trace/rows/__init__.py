"""Rows that a mask picks, in a number unknown before the program runs: all rows are kept, beside the mask."""

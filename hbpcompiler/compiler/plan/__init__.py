"""Stage 3: what travels backwards, in which form, and how it ends at the parameters."""

"""Stage 8, prove: a program beside the model's own training step, on one batch."""

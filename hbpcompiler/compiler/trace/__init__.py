"""Stage 1: a model, a loss and a batch become a graph of operations."""

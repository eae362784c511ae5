"""How a loss ends: in sums and means over the batch of what each sample adds, and what it asks of targets."""

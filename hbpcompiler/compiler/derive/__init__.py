"""Stage 4: the rules and routes write the program, forward and backward, as a torch.fx graph."""

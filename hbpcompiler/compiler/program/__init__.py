"""The program as a torch.fx graph: what writes it, what its nodes are, which shapes they have."""

"""The exported torch.fx graph: rewritten until nothing changes in place, then read into a `Graph`."""

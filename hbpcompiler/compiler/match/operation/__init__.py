"""One operation of the graph: as a call of torch, as the `Op` that its rule sees, as a function, on a few samples."""

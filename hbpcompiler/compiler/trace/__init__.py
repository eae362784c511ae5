"""Stage 1: a model, a loss and a batch become a graph of operations.

Any model passes `export`, `fx_graph` and `graph`; most of the other files are for code that torch.export does not
follow by itself. The folders, each of which imports only those in front of it: `source`, what the user's code says;
`patches`, what stands in for torch's and Python's own code meanwhile; `refusals`, what cannot be followed, in the
user's terms; `fx_graph`, torch's graph, rewritten and read; `conditions`, code that goes by values or sizes; `rows`,
rows that a mask picks.
"""

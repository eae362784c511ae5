"""`python -m benchmarks.training`: optimizers with curvature beside tuned momentum SGD and Adam.

The protocol is that of the BackPACK paper (Dangel, Kunstner & Hennig 2020, section 4 and appendix C), which is that of
DeepOBS (Schneider, Balles & Hennig 2019): a grid of step sizes and dampings with one seed, the setting of the highest
final accuracy on validation data, that setting again with ten other seeds, medians and quartiles. Differences: data
sets and networks are small ones that need no download (the paper's own are there for those who have them), momentum SGD
and Adam are tuned on grids as large, all optimizers meet the same initial weights and the same batches, and no l2 term
is added.
"""

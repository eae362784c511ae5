"""Stage 2: the graph in a form that rules know, and a rule for each operation."""

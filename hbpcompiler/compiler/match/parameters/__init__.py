"""Parameters met in other ways than by a layer: in products written by hand, or as values like any other."""

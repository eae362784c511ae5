"""Where other libraries take curvature and per-sample gradients from: each module is for one, and imports it on use."""

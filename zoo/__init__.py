"""Models of strangers: each family of torchvision, timm and transformers, against autograd. `make zoo`."""

"""Samples in front: where a model has its sample axis elsewhere, merges it with others or numbers its samples."""

"""What stands in for torch's and Python's own code while a model is exported."""

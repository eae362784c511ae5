"""The way of a model: `pipeline` has the stages in a row, each a folder beside it."""

"""What the user's source says: where a node comes from, what a name stands for, what a statement does."""

"""What a trace cannot follow, in the user's terms, and what to write instead."""

"""Stage 5: passes over the program, in one list (`passes`)."""

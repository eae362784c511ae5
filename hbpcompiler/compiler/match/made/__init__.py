"""Rules that are made where none is known, of torch's own derivatives; and those of the user's, tried out."""

"""Programs for any length of named axes: what differs between programs for several lengths, as expressions in T."""

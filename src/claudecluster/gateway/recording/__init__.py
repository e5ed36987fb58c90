"""Model traffic written to a file and played back from it."""

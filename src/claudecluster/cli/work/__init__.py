"""The commands that start, change or end runs."""

"""The commands a user types: parse, call, print."""

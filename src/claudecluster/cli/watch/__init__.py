"""A run as it goes: facts as sentences, a live table, plain lines."""

"""Pure: server-sent events parsed, counted and spliced."""

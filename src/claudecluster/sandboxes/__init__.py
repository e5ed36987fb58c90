"""Where work runs: one back end a file."""

"""Ready-made checks."""

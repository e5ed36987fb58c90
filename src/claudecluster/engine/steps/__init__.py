"""What workflows do to the world, step by step. Each may run twice after a crash."""

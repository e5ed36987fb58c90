"""Standard library only: what runs on the other side of a sandbox's wall."""

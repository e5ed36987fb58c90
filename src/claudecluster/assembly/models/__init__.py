"""How models are reached, as configured, and what was last known of their limits."""

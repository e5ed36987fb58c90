"""Contract suites: what every implementation of a port must pass. Subclass one in your own tests."""

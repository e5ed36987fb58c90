"""The Anthropic-compatible proxy between agents and models."""

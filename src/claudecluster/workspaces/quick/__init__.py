"""The ways that need no git process: reading objects, comparing trees, harvesting a simple change."""

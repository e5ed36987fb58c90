"""Pure: an Anthropic Messages request becomes what a local server understands, without loss of text."""

"""Pure: a local server's stream becomes a well-formed Anthropic stream, whatever the chunks and the damage."""

"""Back ends outside this machine: Anthropic, and where its key comes from."""

"""The commands about models: the gateway, limits and cost."""

"""Git: the hub, workspaces, landing commits and receipts."""

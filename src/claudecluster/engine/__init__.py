"""Durable runs, tasks and landings on DBOS. `cluster.py` is the one façade the doors call."""

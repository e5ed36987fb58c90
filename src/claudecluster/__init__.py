"""ClaudeCluster: fleets of coding agents, run the way a build system runs jobs.

Importing this package does nothing. Start reading at `claudecluster.ports`.
"""

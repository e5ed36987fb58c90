"""The Protocols between the rooms. Read this folder first.

`sandbox` is where a process runs, `workspace` is the tree it works on, `agent` does the work, `check` looks
at the result, `gateway` stands between an agent and a model, `store` remembers.
"""

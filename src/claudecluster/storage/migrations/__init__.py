"""One module a revision, run by Alembic in the order of `down_revision`. A revision that has shipped never changes."""

HEAD = "0001"  # the newest revision here; numbers grow, so a larger one was written by newer code

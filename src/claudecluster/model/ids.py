"""Names for runs, attempts and refs, decided before the side effect they name."""

import secrets
import uuid

ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford base 32: no i, l, o, u to misread
SESSIONS = uuid.UUID("6f0c1a52-3d0e-4f3e-9d53-0f6f1d2a7c11")


def new_run() -> str:
    """Return a fresh run id, such as `r7k2m9qd`: short enough to type, 35 bits of chance."""
    return "r" + "".join(secrets.choice(ALPHABET) for _ in range(7))


def attempt_name(run: str, task: str, attempt: int) -> str:
    """Return the name that an attempt's sandbox, socket and workspace carry; unique per store."""
    return f"{run}.{task}.{attempt}"


def attempt_ref(run: str, task: str, attempt: int) -> str:
    """Return the hub ref that holds everything this attempt made."""
    return f"refs/claudecluster/{run}/{task}/{attempt}"


def head_ref(run: str) -> str:
    """Return the hub ref of the run's landed history. No task id has an underscore."""
    return f"refs/claudecluster/{run}/_head"


def session_id(run: str, task: str, generation: int) -> str:
    """Return the agent session's UUID: the same on every host and after every restart."""
    return str(uuid.uuid5(SESSIONS, f"{run}/{task}/{generation}"))

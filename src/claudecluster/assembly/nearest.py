"""The known name nearest to a mistyped one, for hints. Called wherever a name is refused; knows no names itself."""

import difflib
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the known name that was probably meant; empty if none is close."""
    return next(iter(difflib.get_close_matches(name.lower(), list(known), n=1, cutoff=0.6)), "")


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return a hint: what was probably meant, and all there is to choose from."""
    names = sorted(known)
    close = nearest(name, names)
    there = f"known: {', '.join(names)}" if names else "none are installed"
    return f"did you mean `{close}`? ({there})" if close else there

"""Where a path named by a caller leads inside a sandbox. Called by `process`, `none` and `orders`; pure."""

import posixpath

from claudecluster.model.errors import Refused


def inside(path: str, work: str, *others: str) -> str:
    """Return `path`, relative to `work`, as a normal absolute path. Raises Refused unless it lies in `work` or one of `others`."""
    found = posixpath.normpath(posixpath.join(work, path))
    if "\0" in path or not any(found == root or found.startswith(root.rstrip("/") + "/") for root in (work, *others)):
        raise Refused(f"{path!r} leads out of the sandbox's folders")
    return found

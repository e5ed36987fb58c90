"""Secrets taken out of text before it is written to a file. Pure.

What we know to be secret is replaced wherever it stands, and what has the form of a well-known credential too.
"""

import re
from collections.abc import Iterable

MASK = "[redacted]"
FORMS = re.compile(
    r"sk-[A-Za-z0-9_-]{16,}"  # Anthropic, OpenAI
    r"|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|glpat-[\w-]{16,}"
    r"|AKIA[0-9A-Z]{16}|xox[abprs]-[A-Za-z0-9-]{10,}|AIza[\w-]{30,}"
    r"|eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,}"  # JSON web tokens
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----.*?-----END [A-Z ]*PRIVATE KEY-----",
    re.DOTALL,
)


def redact(text: str, secrets: Iterable[str] = ()) -> str:
    """Return the text without these secrets and without anything that looks like one."""
    for secret in secrets:
        if len(secret) >= 8:  # shorter ones would blank out innocent text
            text = text.replace(secret, MASK)
    return FORMS.sub(MASK, text)

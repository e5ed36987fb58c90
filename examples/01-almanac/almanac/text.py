"""Short texts: names for files, lines that must fit, lists that must read well."""

import re
import unicodedata

ELLIPSIS = "…"


def squeeze(text: str) -> str:
    """Turn every run of white space into one blank, and drop it at both ends."""
    return " ".join(text.split())


def slugify(text: str) -> str:
    """Make a name for a file or an address: lower-case ASCII letters and digits, words joined by single hyphens.

    Accents are dropped ("Crème brûlée" gives "creme-brulee"); nothing stands before the first word or after the last.
    """
    return re.sub(r"[^a-z0-9]", "-", text.lower())


def plain(text: str) -> str:
    """Return the text without accents and other marks."""
    decomposed = unicodedata.normalize("NFKD", text)
    return "".join(character for character in decomposed if not unicodedata.combining(character))


def enumerate_words(words: list[str], last: str = "and") -> str:
    """Join words as one says them: "a", "a and b", "a, b and c"."""
    if not words:
        return ""
    if len(words) == 1:
        return words[0]
    return f"{', '.join(words[:-1])} {last} {words[-1]}"


def wrap(text: str, width: int) -> list[str]:
    """Break a text into lines of at most `width` characters, between words. A longer word keeps a line of its own."""
    if width < 1:
        raise ValueError(f"no such width: {width}")
    lines: list[str] = []
    line = ""
    for word in text.split():
        longer = f"{line} {word}" if line else word
        if len(longer) > width and line:
            lines.append(line)
            line = word
        else:
            line = longer
    if line:
        lines.append(line)
    return lines


def truncate(text: str, width: int) -> str:
    """Shorten a text to at most `width` characters, the last of which is then an ellipsis. A text that fits is returned as it is."""
    if width < 1:
        raise ValueError(f"no such width: {width}")
    if len(text) < width:
        return text
    return text[:width] + ELLIPSIS


def initials(name: str) -> str:
    """Return a name's initials, such as "A. L." for "ada lovelace"."""
    return " ".join(f"{word[0].upper()}." for word in name.split())

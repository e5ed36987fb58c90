"""Make a request for a summary fit a small window, openly.

Claude Code answers "prompt is too long" by asking the same model to summarise the whole conversation: a prompt that is longer still. Seen with
2.1.327: it gives up when that is refused too. A summary is lossy anyway, so for this one request, and no other, the longest messages are cut in
their middle, and the cut says so. Tools go first, for a summary calls none.
"""

from collections.abc import Callable
from dataclasses import replace

from claudecluster.gateway.local.requests.conversation import Conversation, Line

MARKS = ("<summary>", "<analysis>")  # both CLIs ask for these two in the last message
KEPT = 600  # characters that every message keeps at least
NOTE = "\n[... {} characters left out here, to fit this model's window ...]\n"


def asks_for_summary(conversation: Conversation) -> bool:
    """Return whether the last thing said is Claude Code's request to summarise the conversation."""
    last = conversation.lines[-1] if conversation.lines else Line("user")
    return last.role == "user" and all(mark in last.text for mark in MARKS)


def shrunk(conversation: Conversation, fits: Callable[[Conversation], bool]) -> Conversation:
    """Return the conversation without tools and images, its longest messages cut as little as makes it fit, if anything does."""
    last = len(conversation.lines) - 1
    bare = replace(conversation, tools=(), lines=tuple(replace(line, pictures=()) for line in conversation.lines))

    def cut(longest: int) -> Conversation:
        lines = [line if place == last else _cut(line, longest) for place, line in enumerate(bare.lines)]
        return replace(bare, lines=tuple(lines))

    if fits(bare):
        return bare
    low, high = KEPT, max((len(line.text) for line in bare.lines), default=KEPT)
    while high - low > KEPT // 4:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(cut(middle)) else (low, middle)
    return cut(low)


def _cut(line: Line, longest: int) -> Line:
    """Return the line with at most that many of its own characters in text and in each argument."""
    calls = tuple(
        replace(call, arguments={key: _short(value, longest) if isinstance(value, str) else value for key, value in call.arguments.items()})
        for call in line.calls
    )
    return replace(line, text=_short(line.text, longest), calls=calls)


def _short(text: str, longest: int) -> str:
    out = len(text) - longest
    if out <= len(NOTE):
        return text
    head = longest // 2
    return f"{text[:head]}{NOTE.format(out)}{text[head + out :]}"

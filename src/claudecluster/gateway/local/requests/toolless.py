"""Offer tools in words to a model that cannot call them: Hermes' `<tool_call>` format, which `replies.prose` reads back."""

import json
from dataclasses import replace

from claudecluster.gateway.local.requests.conversation import Conversation, Line

HOW = """# Tools
You can call these tools. To call one, write exactly this and nothing after it:
<tool_call>
{"name": "<tool name>", "arguments": {<arguments as JSON>}}
</tool_call>
Several calls may follow each other. The results come back in <tool_response> tags.
"""


def in_words(conversation: Conversation) -> Conversation:
    """Return the same conversation with its tools, calls and results written into the text."""
    lines = [_spoken(line) for line in conversation.lines]
    if conversation.tools:
        offers = [
            json.dumps({"name": tool.name, "description": tool.description, "parameters": tool.schema}, ensure_ascii=False)
            for tool in conversation.tools
        ]
        text = "\n".join([HOW, "<tools>", *offers, "</tools>"])
        if lines and lines[0].role == "system":
            lines[0] = replace(lines[0], text=f"{lines[0].text}\n\n{text}")
        else:
            lines.insert(0, Line("system", text))
    return replace(conversation, lines=tuple(_merged(lines)), tools=())


def _spoken(line: Line) -> Line:
    if line.role == "tool":
        return Line("user", f"<tool_response>\n{line.said()}\n</tool_response>")
    if not line.calls:
        return line
    calls = [
        f"<tool_call>\n{json.dumps({'name': call.name, 'arguments': dict(call.arguments)}, ensure_ascii=False)}\n</tool_call>"
        for call in line.calls
    ]
    return Line("assistant", "\n".join([line.text, *calls] if line.text else calls))


def _merged(lines: list[Line]) -> list[Line]:
    """Return the lines with neighbours of one role made one: templates insist on turns."""
    merged: list[Line] = []
    for line in lines:
        if merged and merged[-1].role == line.role:
            last = merged[-1]
            merged[-1] = replace(last, text=f"{last.text}\n\n{line.text}", pictures=(*last.pictures, *line.pictures))
        else:
            merged.append(line)
    return merged

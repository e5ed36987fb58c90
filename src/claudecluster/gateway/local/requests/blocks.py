"""What a content block says in words, for models that know only text (and perhaps images).

Block types: docs.anthropic.com "Messages". A type unknown here is written out as JSON: better odd than lost.
"""

import base64
import binascii
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from claudecluster.gateway.local.requests.conversation import Picture

Block = Mapping[str, Any]


def blocks_of(content: object) -> list[Block]:
    """Return content as blocks: a string is one text block, anything that is no block is left out."""
    if isinstance(content, str):
        return [{"type": "text", "text": content}] if content else []
    if not isinstance(content, Sequence):
        return []
    return [{"type": "text", "text": item} if isinstance(item, str) else item for item in content if isinstance(item, str | Mapping)]


def words(block: Block) -> str:
    """Return what the block says, "" where it says nothing (thinking)."""
    saying = WORDS.get(str(block.get("type", "")))
    if saying is not None:
        return saying(block)
    return json.dumps({key: value for key, value in block.items() if key != "cache_control"}, ensure_ascii=False)


def joined(blocks: Sequence[Block]) -> str:
    """Return the words of all blocks with blank lines between."""
    return "\n\n".join(said for said in map(words, blocks) if said)


def picture(block: Block) -> Picture | None:
    """Return the image in the block if it carries its own bytes."""
    source = block.get("source")
    if block.get("type") != "image" or not isinstance(source, Mapping) or source.get("type") != "base64":
        return None
    return Picture(str(source.get("media_type") or "image/png"), str(source.get("data") or ""))


def pictures(blocks: Sequence[Block]) -> Iterator[Picture]:
    """Yield every image that carries its own bytes."""
    for block in blocks:
        found = picture(block)
        if found is not None:
            yield found


def _unseen(block: Block) -> str:
    source = block.get("source")
    if isinstance(source, Mapping) and source.get("type") == "url":
        return f"[An image is at {source.get('url', '')}; it was not fetched, so you cannot see it.]"
    kind = source.get("media_type", "image") if isinstance(source, Mapping) else "image"
    return f"[There was an image here ({kind}). You cannot see images; say so if the answer depends on it.]"


def _document(block: Block) -> str:
    head = "\n".join(str(block[key]) for key in ("title", "context") if block.get(key))
    source = block.get("source")
    body = _source(source) if isinstance(source, Mapping) else ""
    return f"<document>\n{head}\n{body}\n</document>" if head else f"<document>\n{body}\n</document>"


def _source(source: Mapping[str, Any]) -> str:
    kind, media = source.get("type"), str(source.get("media_type") or "")
    if kind == "text":
        return str(source.get("data") or "")
    if kind == "content":
        return joined(blocks_of(source.get("content")))
    if kind == "url":
        return f"[The document is at {source.get('url', '')}; it was not fetched.]"
    if kind == "base64" and (media.startswith("text/") or media in {"application/json", "application/xml"}):
        try:
            return base64.b64decode(str(source.get("data") or "")).decode("utf-8", "replace")
        except binascii.Error:
            return "[The document could not be decoded.]"
    return f"[A document of type {media or kind} was here. You cannot read this type; say so if the answer depends on it.]"


def _found(block: Block) -> str:
    """Return what Anthropic's web search found, without the parts only Anthropic can decrypt."""
    content = block.get("content")
    if not isinstance(content, list):
        return f"[The web search failed: {json.dumps(content, ensure_ascii=False)}]"
    rows = [f"- {item.get('title', '')} ({item.get('url', '')})" for item in content if isinstance(item, Mapping)]
    return "\n".join(["Web search results:", *rows])


WORDS: Mapping[str, Callable[[Block], str]] = {
    "text": lambda block: str(block.get("text") or ""),
    "thinking": lambda _: "",  # a model reads its own old thoughts only with Anthropic's signature
    "redacted_thinking": lambda _: "",
    "image": _unseen,
    "document": _document,
    "tool_reference": lambda block: f"The tool {block.get('tool_name', '')} is loaded and can be called now.",
    "search_result": lambda block: (
        f"Search result: {block.get('title', '')} ({block.get('source', '')})\n{joined(blocks_of(block.get('content')))}"
    ),
    "web_search_tool_result": _found,
    "server_tool_use": lambda block: (
        f"[{block.get('name', 'A server tool')} was asked for: {json.dumps(block.get('input', {}), ensure_ascii=False)}]"
    ),
}

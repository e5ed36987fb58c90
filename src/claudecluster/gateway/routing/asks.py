"""A client's request, read: what a provider is asked, without what is none of its business. Pure."""

import hashlib
from collections.abc import Mapping
from typing import Any

import orjson

from claudecluster.gateway.provider import COUNT_TOKENS, MESSAGES, Ask
from claudecluster.gateway.server.message import HOP_BY_HOP, Head, Request

CONSUMED = HOP_BY_HOP | {"host", "content-length", "accept-encoding", "authorization", "x-api-key", "cookie", "expect", "forwarded", "via"}
OURS = ("x-claude-code-", "x-claudecluster-", "x-forwarded-")
SESSION = "x-claude-code-session-id"
AGENT = "x-claude-code-agent-id"
OAUTH = "Bearer sk-ant-oat"


def make_ask(request: Request, scope: str = "", *, pass_login: bool = False) -> Ask:
    """Return what a provider is asked. Raises ValueError, in words for the client, if the body is no request."""
    head = request.head
    payload = _payload(request.body) if head.method == "POST" else {}
    if head.path == MESSAGES:
        _check(payload)
    named = head.headers.get("connection", "").lower()
    headers = {
        name: value
        for name, value in head.headers.items()
        if name not in CONSUMED and not name.startswith(OURS) and not (named and name in named.replace(" ", "").split(","))
    }
    return Ask(
        method=head.method,
        path=head.path,
        query=head.query,
        headers=headers,
        body=request.body,
        payload=payload,
        model=str(payload.get("model") or ""),
        stream=payload.get("stream") is True and head.path != COUNT_TOKENS,
        session=head.headers.get(SESSION, ""),
        scope=scope,
        credentials=_login(head) if pass_login else {},
    )


def conversation(head: Head, ask: Ask) -> str:
    """Return a name for the conversation a request belongs to: its session and sub-agent, else what it began with."""
    if ask.session:
        return f"{ask.session}/{head.headers.get(AGENT, '')}"
    messages = ask.payload.get("messages")
    if not isinstance(messages, list) or not messages:
        return ""
    return hashlib.blake2b(orjson.dumps(messages[0]), digest_size=12).hexdigest()


def _payload(body: bytes) -> Mapping[str, Any]:
    try:
        payload = orjson.loads(body)
    except ValueError as error:
        raise ValueError(f"The request body is not valid JSON: {error}") from None
    if not isinstance(payload, dict):
        raise ValueError("The request body must be a JSON object.")  # noqa: TRY004 - one error for all bad bodies
    return payload


def _check(payload: Mapping[str, Any]) -> None:
    if not isinstance(payload.get("model"), str) or not payload["model"]:
        raise ValueError("model: a model name is required.")
    if not isinstance(payload.get("messages"), list):
        raise ValueError("messages: a list of messages is required.")  # noqa: TRY004 - one error for all bad bodies
    if not isinstance(payload.get("stream", False), bool):
        raise ValueError("stream: true or false is required.")  # noqa: TRY004 - one error for all bad bodies


def _login(head: Head) -> dict[str, str]:
    """Return a user's own subscription login, to be passed on in flight; keys of other kinds are not theirs to pass."""
    authorization = head.headers.get("authorization", "")
    return {"authorization": authorization} if authorization.startswith(OAUTH) else {}

"""Small whole answers in Anthropic's shape: the list of models, and errors. Used by the local providers."""

from collections.abc import AsyncGenerator, Sequence

import orjson

from claudecluster.gateway.local.overflow import error_body
from claudecluster.gateway.provider import Answer

JSON = {"content-type": "application/json"}


async def _once(data: bytes) -> AsyncGenerator[bytes, None]:
    yield data


def listed(models: Sequence[str]) -> Answer:
    """Answer `GET /v1/models`."""
    data = [{"type": "model", "id": model, "display_name": model, "created_at": "1970-01-01T00:00:00Z"} for model in models]
    edges = {"first_id": models[0] if models else None, "last_id": models[-1] if models else None}
    return Answer(200, JSON, _once(orjson.dumps({"data": data, "has_more": False, **edges})))


def error(status: int, message: str) -> Answer:
    """Answer an HTTP error; 404 means the model is not there."""
    return Answer(status, JSON, _once(error_body("not_found_error" if status == 404 else "api_error", message)))

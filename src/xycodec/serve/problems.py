"""Refusals as HTTP has them: a status, and a problem body (RFC 9457) that says what to do."""

import json
from http import HTTPStatus
from typing import Any

MEDIA_TYPE = "application/problem+json"


class Problem(Exception):
    """A request that is not done: its HTTP status, and one line on what is wrong and what to do."""

    def __init__(self, status: int, detail: str, **headers: str) -> None:
        super().__init__(detail)
        self.status, self.detail = status, detail
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}

    @property
    def fields(self) -> dict[str, Any]:
        """Members of the body."""
        return {
            "type": "about:blank",
            "title": HTTPStatus(self.status).phrase,
            "status": self.status,
            "detail": self.detail,
        }

    @property
    def body(self) -> bytes:
        """The body, JSON."""
        return json.dumps(self.fields).encode()


def busy(detail: str) -> Problem:
    """The problem of a server that has no room now."""
    return Problem(503, detail, Retry_After="1")


SCHEMA = {
    "type": "object",
    "required": ["type", "title", "status", "detail"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
    },
}


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Descriptions of refusals for OpenAPI."""
    return {
        status: {"description": HTTPStatus(status).phrase, "content": {MEDIA_TYPE: {"schema": SCHEMA}}}
        for status in statuses
    }

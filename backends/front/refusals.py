"""What a front says itself: errors as OpenAI's clients know them, as a whole answer or as a stream's last event."""

from __future__ import annotations

import json
from typing import Any


class RefusedError(Exception):
    """A request that is not, or no longer, passed on; the text is for its client.

    `status` is the HTTP status, `kind` the error's type, `retry_after_s` whole seconds after which another try may do.
    """

    def __init__(self, status: int, kind: str, message: str, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.message = message
        self.retry_after_s = retry_after_s

    def body(self) -> bytes:
        """Return the error as JSON."""
        return json.dumps({"error": self._error()}).encode()

    def event(self) -> bytes:
        """Return the error as a server-sent event that clients of OpenAI's and of Anthropic's routes take for one.

        It begins with an empty line: what was sent before may have been cut off in the middle of an event.
        """
        return f"\n\nevent: error\ndata: {json.dumps({'type': 'error', 'error': self._error()})}\n\n".encode()

    def _error(self) -> dict[str, Any]:
        return {"message": self.message, "type": self.kind, "code": self.status}

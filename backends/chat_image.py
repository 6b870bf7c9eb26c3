"""A picture for a model that can see: read from a file, its type and size checked, sent as a data URL."""

from __future__ import annotations

import base64
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from backends.errors import UsageError

LIMIT_BYTES = 20 << 20
KINDS = "PNG, JPEG, WebP and GIF"


@dataclass(frozen=True, slots=True)
class Image:
    """A picture as its file holds it; `kind` is its media type."""

    name: str
    kind: str
    data: bytes

    @property
    def url(self) -> str:
        """The whole picture as a data URL."""
        return f"data:{self.kind};base64,{base64.b64encode(self.data).decode()}"


def read_image(path: str) -> Image:
    """Read a picture of at most `LIMIT_BYTES`; its first bytes tell its type, not its name.

    It reads the disk: call it off the event loop. Raises UsageError where it is no such picture.
    """
    file = Path(path.strip().strip("'\"")).expanduser()
    if not file.name:
        raise UsageError("which picture?", "/image PATH")
    try:
        # A pipe that nobody writes to would otherwise keep the reader waiting for ever.
        handle = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(handle, "rb") as opened:
            about = os.fstat(handle)
            if not stat.S_ISREG(about.st_mode):
                raise UsageError(f"{file} is no file", f"a picture is a file: {KINDS}")
            if about.st_size > LIMIT_BYTES:
                raise UsageError(
                    f"{file.name} is too large: {about.st_size / (1 << 20):.0f} MiB",
                    f"at most {LIMIT_BYTES >> 20} MiB; make it smaller first",
                )
            data = opened.read(LIMIT_BYTES + 1)
    except (OSError, RuntimeError) as error:
        raise UsageError(
            f"{file} cannot be read: {getattr(error, 'strerror', None) or error}", "/image PATH"
        ) from error
    kind = _kind(data)
    if kind is None:
        raise UsageError(f"{file.name} is no picture that models take", f"they take {KINDS}")
    return Image(file.name, kind, data)


def _kind(data: bytes) -> str | None:
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if data.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    return "image/gif" if data[:6] in (b"GIF87a", b"GIF89a") else None

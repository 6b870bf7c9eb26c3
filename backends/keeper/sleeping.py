"""Putting one server to sleep and waking it, step by step."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager

OnStep = Callable[[str], AbstractAsyncContextManager[object]]
"""Called with the name of each step (as in SwitchStep) to make the context in which that step is taken."""


@contextlib.asynccontextmanager
async def untimed(_: str) -> AsyncIterator[None]:
    """Take a step that nobody times."""
    yield

"""What happened to a server, as marks on the time axis of its charts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from backends.snapshots import Event, Server, ServerState
from tui.themes import STATES
from tui.widgets.metric_axis import TimeAxis

SIGNS = {
    "started": "▲",
    "died": "✗",
    "timeout": "✗",
    "lost": "✗",
    "stopped": "■",
    "wedged": "!",
    "memory": "!",
    "xid": "!",
}
"""Of the kinds of events that are no states; a state's own sign stands for the others, a rhomb for what is left."""

_STATE_SIGNS = {state.value: sign for state, (sign, _) in STATES.items()}
ANY = "◆"
ALIKE_S = 5.0
GRAVE = frozenset({"✗", "!"})


@dataclass(frozen=True, slots=True)
class Mark:
    """An event at its moment (Unix seconds), with its sign and its words."""

    at: float
    sign: str
    kind: str
    text: str


def marks_of(server: Server, events: Iterable[Event]) -> tuple[Mark, ...]:
    """Return what happened to `server`, oldest first; what it tells itself of its launch stands in where it must."""
    marks = [
        Mark(event.at, sign_of(event.kind), event.kind, event.text) for event in events if event.server == server.name
    ]
    told: list[tuple[float | None, str, str]] = [(server.launched_at, "started", "started")]
    told.append((server.ready_at, "ready", "ready"))
    if server.exit is not None and server.state in (ServerState.STOPPED, ServerState.FAILED, ServerState.LOST):
        kind = server.state.value
        told.append((server.exit.at, kind, server.cause or kind))
    if server.state is ServerState.SLEEPING:
        told.append((server.state_since, server.state.value, "asleep"))
    for at, kind, text in told:
        if at is not None and not any(abs(mark.at - at) <= ALIKE_S and mark.kind == kind for mark in marks):
            marks.append(Mark(at, sign_of(kind), kind, text))
    return tuple(sorted(marks, key=lambda mark: mark.at))


def sign_of(kind: str) -> str:
    """Return the sign of an event's kind: its own, a state's, or the one of whatever else happens."""
    if kind in SIGNS:
        return SIGNS[kind]
    return _STATE_SIGNS.get(kind, ANY)


def placed(marks: Iterable[Mark], axis: TimeAxis) -> dict[int, str]:
    """Return the signs by their columns; where several fall into one, the gravest shows, else the last."""
    signs: dict[int, str] = {}
    for mark in marks:
        cell = axis.cell_of(mark.at)
        if cell is not None and signs.get(cell) not in GRAVE:
            signs[cell] = mark.sign
    return signs


def told_at(marks: Iterable[Mark], axis: TimeAxis, cell: int) -> str:
    """Return what happened in a column, in words; '' where nothing did."""
    return " · ".join(f"{mark.sign} {mark.text}" for mark in marks if axis.cell_of(mark.at) == cell)


def mark_cell(marks: Iterable[Mark], axis: TimeAxis, from_cell: int, step: int) -> int | None:
    """Return the column of the next mark in a direction (−1 earlier, 1 later); None where there is none."""
    cells = [cell for mark in marks if (cell := axis.cell_of(mark.at)) is not None]
    beyond = [cell for cell in cells if (cell - from_cell) * step > 0]
    return (max(beyond) if step < 0 else min(beyond)) if beyond else None

"""What every supervisor of the keeper shares."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from backends.keeper.boxwatch import BoxWatch
from backends.keeper.events import Hub
from backends.keeper.history import History
from backends.ledger import Ledger
from backends.metrics.series import SeriesStore


@dataclass(frozen=True, slots=True)
class Surroundings:
    """The keeper's broadcast, its memory of figures, its eye on the box, the ledger, its pen, and the taken ports."""

    hub: Hub
    series: SeriesStore
    box: BoxWatch
    ledger: Ledger
    history: History
    taken_ports: Callable[[], set[int]]

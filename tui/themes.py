"""The house's colours, and their names for what is drawn as text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from textual.theme import Theme

from backends.snapshots import Missing, ServerState

if TYPE_CHECKING:
    from textual.app import App

NIGHT = Theme(
    name="gpubox-night",
    primary="#6cb6ff",
    secondary="#b392f0",
    accent="#56d4bc",
    foreground="#d3dae3",
    background="#0c1016",
    surface="#10151d",
    panel="#1a212c",
    success="#7cd67c",
    warning="#e8b84e",
    error="#f4707a",
    dark=True,
    variables={
        "block-cursor-background": "#24405f",
        "block-cursor-foreground": "#ffffff",
        "block-cursor-text-style": "none",
        "block-cursor-blurred-background": "#1a2533",
        "block-cursor-blurred-foreground": "#d3dae3",
        "block-cursor-blurred-text-style": "none",
        "footer-background": "#10151d",
        "footer-key-foreground": "#6cb6ff",
        "footer-description-foreground": "#8b97a6",
        "border": "#2b3645",
        "border-blurred": "#2b3645",
        "scrollbar": "#2b3645",
        "scrollbar-background": "#10151d",
        "faint": "#2f3a49",
        "dim": "#7d8998",
    },
)
DAY = Theme(
    name="gpubox-day",
    primary="#0b62c4",
    secondary="#7446b8",
    accent="#0a7f6b",
    foreground="#1f2730",
    background="#f6f8fa",
    surface="#ffffff",
    panel="#e6ebf1",
    success="#217a2b",
    warning="#9a6500",
    error="#c0283a",
    dark=False,
    variables={
        "block-cursor-background": "#cfe3fa",
        "block-cursor-foreground": "#10161d",
        "block-cursor-text-style": "none",
        "block-cursor-blurred-background": "#e4edf7",
        "block-cursor-blurred-foreground": "#1f2730",
        "block-cursor-blurred-text-style": "none",
        "footer-background": "#e6ebf1",
        "footer-key-foreground": "#0b62c4",
        "footer-description-foreground": "#4a5663",
        "border": "#c3ccd7",
        "border-blurred": "#c3ccd7",
        "scrollbar": "#c3ccd7",
        "scrollbar-background": "#ffffff",
        "faint": "#cdd5de",
        "dim": "#66727f",
    },
)
CONTRAST = Theme(
    name="gpubox-contrast",
    primary="#8ecbff",
    secondary="#d9b8ff",
    accent="#5ff5d8",
    foreground="#ffffff",
    background="#000000",
    surface="#000000",
    panel="#1c1c1c",
    success="#7dff7d",
    warning="#ffd75e",
    error="#ffb0b0",
    dark=True,
    variables={
        "block-cursor-background": "#00304d",
        "block-cursor-foreground": "#ffffff",
        "block-cursor-text-style": "bold underline",
        "block-cursor-blurred-background": "#2a2a2a",
        "block-cursor-blurred-foreground": "#ffffff",
        "block-cursor-blurred-text-style": "underline",
        "footer-background": "#000000",
        "footer-key-foreground": "#8ecbff",
        "footer-description-foreground": "#e0e0e0",
        "border": "#b0b0b0",
        "border-blurred": "#b0b0b0",
        "scrollbar": "#b0b0b0",
        "scrollbar-background": "#000000",
        "text-muted": "#e0e0e0",
        "text-disabled": "#d0d0d0",
        "faint": "#8a8a8a",
        "dim": "#d0d0d0",
    },
)
"""Every text has a contrast of 7 to 1 and more (WCAG 2 AAA), also under the cursor; tracks of bars have 3 to 1."""

THEMES = (NIGHT, DAY, CONTRAST)
DEFAULT_VARIABLES = {"dim": "#808890", "faint": "#505860"}
"""What our styles need and a theme of Textual's does not know."""

UTILIZATION_LEVELS = (0.10, 0.75)
MEMORY_LEVELS = (0.10, 0.80)


@dataclass(frozen=True, slots=True)
class Palette:
    """Colours of the active theme, for text that is drawn cell by cell."""

    background: str
    text: str
    dim: str
    faint: str
    primary: str
    secondary: str
    accent: str
    good: str
    warn: str
    bad: str

    def level(self, ratio: float | Missing, levels: tuple[float, float]) -> str:
        """Colour a ratio by two thresholds: quiet below the first, alarming above the second."""
        if isinstance(ratio, Missing) or ratio < levels[0]:
            return self.good
        return self.warn if ratio < levels[1] else self.bad

    def state(self, state: ServerState) -> str:
        """Colour a server's state; its sign and its word say the same without colour."""
        return getattr(self, STATES[state][1])  # type: ignore[no-any-return]


STATES: dict[ServerState, tuple[str, str]] = {
    ServerState.STOPPED: ("○", "dim"),
    ServerState.QUEUED: ("…", "warn"),
    ServerState.STARTING: ("◐", "primary"),
    ServerState.READY: ("●", "good"),
    ServerState.UNRESPONSIVE: ("!", "bad"),
    ServerState.DRAINING: ("◑", "warn"),
    ServerState.STOPPING: ("◌", "warn"),
    ServerState.BACKOFF: ("↻", "warn"),
    ServerState.FAILED: ("✗", "bad"),
    ServerState.LOST: ("?", "bad"),
    ServerState.FALLING_ASLEEP: ("◒", "dim"),
    ServerState.SLEEPING: ("z", "dim"),
    ServerState.WAKING: ("◓", "primary"),
}
"""Each state's sign, and the name of its colour in the palette."""


def palette(app: App[object]) -> Palette:
    """Return the active theme's colours."""
    variables = app.theme_variables
    return Palette(
        background=variables["background"],
        text=variables["foreground"],
        dim=variables["dim"],
        faint=variables["faint"],
        primary=variables["primary"],
        secondary=variables["secondary"],
        accent=variables["accent"],
        good=variables["success"],
        warn=variables["warning"],
        bad=variables["error"],
    )

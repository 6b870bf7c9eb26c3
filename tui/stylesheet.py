"""Styles that are parsed once."""

from __future__ import annotations

from textual.cache import LRUCache
from textual.css.stylesheet import Stylesheet

MOST_SOURCES = 1024


class KeptStylesheet(Stylesheet):
    """Textual's stylesheet, without parsing all of it anew, every widget's own too, when a screen is first shown."""

    def __init__(self, *, variables: dict[str, str] | None = None) -> None:
        super().__init__(variables=variables)
        self._parse_cache = LRUCache(MOST_SOURCES)

    def set_variables(self, variables: dict[str, str]) -> None:
        """Parse with other variables from now on."""
        if variables != self._variables:
            super().set_variables(variables)

    def reparse(self) -> None:
        """Parse what is new; all else follows from the same text and the same variables as before."""
        self.parse()

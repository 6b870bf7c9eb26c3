"""What can be wrong with a profile: each problem says where it is and what to do, and all of them are told at once."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ProfileProblem:
    """One thing that is wrong: `where` is a key path (`args.max_model_len`), empty where the whole file is meant."""

    file: str
    where: str
    message: str
    suggestion: str = ""
    line: int | None = None

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        text = ": ".join(part for part in (place, self.where, self.message) if part)
        return f"{text}; {self.suggestion}" if self.suggestion else text


class InvalidProfileError(ValueError):
    """A profile cannot be used; its text has one line for each problem: what, where, what to do."""

    def __init__(self, problems: Sequence[ProfileProblem]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = tuple(problems)


class RefusedError(ValueError):
    """Raised by a check of one value: what is wrong, and what to do about it."""

    def __init__(self, message: str, suggestion: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.suggestion = suggestion


def did_you_mean(word: str, known: Iterable[str], otherwise: str = "") -> str:
    """Return 'did you mean …?' with the known word that is nearest to `word`, or `otherwise` where none is near."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"did you mean {near[0]}?" if near else otherwise

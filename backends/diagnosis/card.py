"""The crash card: what began a failure, in plain words, with its evidence and what to do about it.

Structure decides before wording: the first exception that ended a process of the engine is looked at first, what only
reports it or follows from it never. The table of causes then names it; where it does not, the card says `unknown` and
shows that exception.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from backends.diagnosis.causes import OUT_OF_MEMORY, RULES, Rule, match, match_death
from backends.diagnosis.ended import HowItEnded, holder_of, how_it_ended, killed_by
from backends.diagnosis.masking import masked
from backends.diagnosis.reading import log_parts, raw_lines
from backends.diagnosis.remedies import remedies_for
from backends.diagnosis.situation import Situation
from backends.diagnosis.story import Story, tell
from backends.diagnosis.tracebacks import Chain, Phase, Raised
from backends.starts import Card, Evidence, Remedy

PORT_IN_USE = "port-in-use"
UNKNOWN = "unknown"
NO_FAILURE = "none"
LONGEST_EVIDENCE = 600
LONGEST_SUMMARY = 240

_NOISE = re.compile(r"\[W\d{4} |NCCL INFO|destroy_process_group|resource_tracker|UserWarning|leaked |ASGI application")
_REPORT = re.compile(r"initialization failed|failed to start|Worker failed|EngineDeadError|has errored")
_LOADING = re.compile(r"load_model|initialize_model|create_weights|load_weights|process_weights|get_model$")
_WARMING = re.compile(
    r"profile_run|determine_available_memory|capture_model|capture|warm_?up|_dummy_\w+|initialize_from_config|"
    r"initialize_kv_cache|_allocate_kv_cache\w*|profile_cudagraph\w*|compile_or_warm_up_model"
)
_SERVING = re.compile(r"run_busy_loop|step_fn|step_with_batch_queue|process_engine_step|_process_engine_step")
_PHASES: dict[Phase, tuple[str, str]] = {
    "load": ("at-load", "out of GPU memory while the weights were loaded"),
    "warm-up": ("at-warm-up", "out of GPU memory while vLLM warmed up"),
    "use": ("in-use", "out of GPU memory while it served requests"),
}


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """A card, and the file that its evidence stands in: a part of the log where the log has several."""

    card: Card
    file: Path


@dataclass(frozen=True, slots=True)
class _Finding:
    """A cause before its remedies are known."""

    code: str
    summary: str
    groups: Mapping[str, str]
    evidence: Evidence | None
    part: int = 0
    frames: tuple[str, ...] = ()


def examine(
    path: Path,
    exit: HowItEnded | None = None,
    profile: Mapping[str, Any] | None = None,
    *,
    port: int | None = None,
    gpu_count: int | None = None,
    gpu_memory_bytes: int | None = None,
    oom_killed: bool | None = None,
) -> Diagnosis:
    """Read a log, of whatever size, and say what began the failure in it.

    `profile` is the content of the failed profile, `exit` how the engine ended, where that is known; `port` is the one
    it was to listen on, `gpu_count` and `gpu_memory_bytes` (of one GPU) what the box has, `oom_killed` whether the
    kernel is known to have killed (or not to have killed) for want of memory. Raises OSError.
    """
    files = log_parts(path)
    story = tell(raw_lines(files))
    if story.total_gib is None and gpu_memory_bytes:
        story.total_gib = gpu_memory_bytes / 2**30
    found = _find(story, exit, oom_killed)
    situation = Situation(story, found.groups, profile or {}, gpu_count)
    summary = found.summary
    if found.code == PORT_IN_USE:
        summary = _port_summary(situation, port)
    card = Card(
        cause=found.code,
        summary=_short(masked(summary)),
        evidence=found.evidence,
        remedies=tuple(remedy for remedy in remedies_for(found.code, situation) if not _tells_a_key(remedy)),
        frames=found.frames,
    )
    return Diagnosis(card, files[found.part])


def diagnose(
    path: Path, exit: HowItEnded | None = None, profile: Mapping[str, Any] | None = None, **known: Any
) -> Card:
    """Return the card of a log; see `examine`."""
    return examine(path, exit, profile, **known).card


def cause_line(card: Card, ended: HowItEnded | None, *, oom_killed: bool | None = None, dropped_lines: int = 0) -> str:
    """Return a card's summary with how the engine ended, on one line."""
    how = how_it_ended(ended, oom_killed=oom_killed)
    lost = f"; {dropped_lines} lines of its log were lost" if dropped_lines else ""
    if card.cause == NO_FAILURE or card.summary == how:
        return how + lost
    return f"{card.summary} ({how}{lost})"


def _find(story: Story, ended: HowItEnded | None, oom_killed: bool | None) -> _Finding:
    """Return what began the end, or else what can be told honestly."""
    fatal = _first_fatal(story)
    if fatal is not None and (found := _of_chain(story, fatal)) is not None:
        return found
    if (found := _of_lines(story, before=fatal)) is not None:
        return found
    if fatal is not None:
        return _unknown_of(fatal)
    if (found := _of_death(story, ended, oom_killed)) is not None:
        return found
    quiet = sorted(_caught(story), key=lambda chain: (_rank(chain), chain.part, chain.began))
    for chain in quiet:
        if (found := _of_chain(story, chain)) is not None:
            return found
    failed = ended is not None and not (ended.code == 0 and story.stopped)
    if quiet and (failed or not story.ready):
        return _unknown_of(quiet[0])
    reported = next((chain for chain in story.chains if chain.is_fatal and _REPORT.search(chain.links[-1].text)), None)
    if reported is not None:
        return replace(_unknown_of(reported), summary="an engine process failed; what began it is not in this log")
    how = how_it_ended(ended, oom_killed=oom_killed)
    if story.complaint is not None and (failed or not story.ready):
        part, line = story.complaint
        return _Finding(UNKNOWN, line.text.strip(), {}, _evidence(line.number, line.text), part)
    return _Finding(UNKNOWN if failed else NO_FAILURE, how if failed else "its log tells of no failure", {}, None)


def _rank(chain: Chain) -> int:
    """Order what ended no process: the engine's before the API server's, what was only warned of last."""
    if all(link.is_secondary or link.is_wrapper for link in chain.links):
        return 3
    if chain.level in ("WARNING", "INFO", "DEBUG", "TRACE"):
        return 2
    return 0 if chain.role == "engine" else 1


def _first_fatal(story: Story) -> Chain | None:
    """Return the first chain that ended a process: of the engine's core and workers, or else of any."""
    ended = [
        chain
        for chain in story.chains
        if chain.is_fatal and not all(link.is_wrapper or link.is_secondary for link in chain.links)
    ]
    of_engine = [chain for chain in ended if chain.role == "engine"]
    return next(iter(of_engine or ended), None)


def _caught(story: Story) -> Iterator[Chain]:
    for chain in story.chains:
        if not all(link.is_wrapper for link in chain.links) and (not chain.is_fatal or _rank(chain) == 3):
            yield chain


def _of_chain(story: Story, chain: Chain) -> _Finding | None:
    """Name a chain by the table's first row that one of its links matches: narrow rows win over wide ones."""
    links = [link for link in chain.links if not link.is_wrapper]
    known = [(link, match(link.text, _files(link))) for link in links]
    matched = [(RULES.index(found[0]), at, link, found) for at, (link, found) in enumerate(known) if found is not None]
    if not matched:
        return None
    _, _, link, (rule, groups) = min(matched, key=lambda one: one[:2])
    groups["files"] = " ".join(_files(link))
    return _named(story, rule, groups, chain, link)


def _files(link: Raised) -> tuple[str, ...]:
    return tuple(frame.file for frame in link.frames)


def _named(story: Story, rule: Rule, groups: dict[str, str], chain: Chain, link: Raised) -> _Finding:
    code, groups = rule.code, _filled(story, groups, link.text)
    summary = rule.summary(groups)
    if code == OUT_OF_MEMORY:
        suffix, summary = _PHASES[_phase_of(chain, link)]
        code = f"{OUT_OF_MEMORY}-{suffix}"
        if tried := re.search(r"Tried to allocate ([\d.]+ \w+)", link.text):
            summary += f": {tried[1]} more were asked for"
    frames = link.frames or next((other.frames for other in chain.links if other.frames), ())
    return _Finding(code, summary, groups, _line_in(link, rule), link.part, tuple(map(str, frames)))


def _filled(story: Story, groups: dict[str, str], text: str) -> dict[str, str]:
    """Add what a summary or a remedy may need and the pattern did not find."""
    groups = {name: value.strip("'\"") for name, value in groups.items()} | {"whole": text}
    if model := story.args.get("model"):
        groups.setdefault("model", str(model))
    for one in ("library", "program"):
        if one in groups:
            groups.setdefault("module", groups[one])
    return groups


def _phase_of(chain: Chain, link: Raised) -> Phase:
    """Tell from the frames what was being done, or else from the stages that the log has told before."""
    functions = [frame.function.rpartition(".")[2] for frame in link.frames]
    if any(map(_WARMING.search, functions)):
        return "warm-up"
    if any(map(_SERVING.search, functions)):
        return "use"
    if any(map(_LOADING.search, functions)):
        return "load"
    return chain.phase


def _line_in(link: Raised, rule: Rule | None = None) -> Evidence:
    """Return the line of an exception that tells most: the one that the pattern matches, or else its first."""
    lines = link.message.split("\n")
    if rule is not None and len(lines) == len(link.numbers):
        for number, text in zip(link.numbers, lines, strict=True):
            whole = f"{link.type}: {text}" if number == link.line else text
            if rule.pattern.search(whole.strip()):
                return _evidence(number, whole)
        for number, text in zip(link.numbers, lines, strict=True):
            if text.strip().startswith(("Value error,", "Assertion failed,")):
                return _evidence(number, text)
    return _evidence(link.line, f"{link.type}: {lines[0]}" if lines[0] else link.type)


def _evidence(number: int, text: str) -> Evidence:
    return Evidence(number, masked(text.strip())[:LONGEST_EVIDENCE])


def _unknown_of(chain: Chain) -> _Finding:
    """Show the root of a chain that no row of the table knows."""
    own = [link for link in chain.links if not (link.is_wrapper or link.is_secondary)] or list(chain.links)
    root = own[0]
    first = next((line.strip() for line in root.message.split("\n") if line.strip()), "")
    name = root.type.rpartition(".")[2]
    summary = f"{name}: {first}" if first else name
    return _Finding(UNKNOWN, summary, {"whole": root.text}, _line_in(root), root.part, tuple(map(str, root.frames)))


def _of_lines(story: Story, before: Chain | None) -> _Finding | None:
    """Name the first plain line that the table knows, as far as it comes before an exception that it does not know."""
    for part, line in story.signs:
        if before is not None and (part, line.number) > (before.part, before.began):
            return None
        if _NOISE.search(line.text):
            continue
        if (found := match(line.text, in_lines=True)) is not None:
            rule, groups = found
            groups = _filled(story, groups, line.text)
            return _Finding(rule.code, rule.summary(groups), groups, _evidence(line.number, line.text), part)
    return None


def _of_death(story: Story, ended: HowItEnded | None, oom_killed: bool | None) -> _Finding | None:
    """Tell of a process that died without a word: by the log, by its exit, or by what the kernel counted."""
    deaths = [(part, line, found) for part, line in story.signs if (found := match_death(line.text)) is not None]
    by_kernel = next((one for one in deaths if one[2][0].code == "killed-for-memory"), None)
    killed = killed_by(ended)
    chosen = by_kernel or (deaths[0] if deaths else None)
    if chosen is None and killed is None:
        return None
    code, evidence, part = "killed", None, 0
    groups: dict[str, str] = {}
    summary = how_it_ended(ended, oom_killed=oom_killed)
    if chosen is not None:
        part, line, (rule, groups) = chosen
        code, evidence = rule.code, _evidence(line.number, line.text)
        summary = rule.summary(groups)
        if code == "killed" and (by := groups.get("exit", "").removeprefix("-")).isdigit() and int(by):
            is_kill = groups["exit"] in ("-9", "137")
            summary = (
                f"{groups['who']} was killed by signal {int(by) % 128}"
                if "-" in groups["exit"]
                else (f"{groups['who']} ended with code {by}")
            )
            summary += ", perhaps by the kernel for want of memory" if is_kill and oom_killed is None else ""
    if oom_killed and code == "killed":
        code, summary = "killed-for-memory", "the kernel killed it, since the host's or the container's memory was full"
    elif code == "killed" and killed is not None and killed != 9 and chosen is None:
        code = "killed" if killed in (1, 2, 3, 15) else "crashed"
    return _Finding(code, summary, groups, evidence, part)


def _port_summary(it: Situation, port: int | None) -> str:
    told = re.search(r"\('[^']*', (\d+)", it.groups.get("whole", ""))
    given = [port, int(told[1]) if told else None, it.profile.get("port"), it.story.args.get("port")]
    wanted = next((one for one in given if isinstance(one, int)), None)
    if wanted is None:
        return "its port is in use"
    holder = holder_of(wanted)
    return f"its port {wanted} is in use" + (f", by {holder}" if holder else "; nobody holds it now")


def _tells_a_key(remedy: Remedy) -> bool:
    """Whether a remedy would show a key that somebody gave on a command line."""
    from profiles.secrets import looks_secret

    values = [(key.rpartition(".")[2].upper(), value) for key, value in remedy.set.items() if value is not None]
    given = [
        (key, value) for key, value in values if isinstance(value, str) and not value.startswith(("env:", "file:"))
    ]
    return masked(remedy.text) != remedy.text or any(looks_secret(key, value) for key, value in given)


def _short(summary: str) -> str:
    text = " ".join(summary.split())
    return text if len(text) <= LONGEST_SUMMARY else text[: LONGEST_SUMMARY - 1] + "…"

"""Whether a version meets what a file declares."""

import re

from vmd.orchestrator.presets.rules import Meaning

MAX_CHARACTERS = 100
_NUMBER = re.compile(r"^[vV=]*(\d{1,9}(?:\.\d{1,9}){0,3})")
_COMPARISON = re.compile(r"(>=|<=|==|~=|!=|~>|>|<|=|\^|~)?\s*v?(\d+(?:\.\d+)*(?:\.[xX*])*|[xX*])")
_HYPHEN = re.compile(r"(\d[\d.]*)\s+-\s+(\d[\d.]*)")
_Numbers = tuple[int, ...]


def is_met(wanted: str, means: Meaning, has: str) -> bool | None:
    """Whether a version meets what is declared; None where that cannot be told."""
    ours = _numbers(has)
    if ours is None or len(wanted) > MAX_CHARACTERS:
        return None
    if means is Meaning.RANGE:
        return _is_in_range(wanted, ours)
    theirs = _numbers(_modern(wanted))
    if theirs is None:
        return None
    if means is Meaning.AT_LEAST:
        return _compare(ours, theirs) >= 0
    return _is_within(ours, theirs)


def _modern(version: str) -> str:
    """Return Java's old way of naming versions, 1.8, as 8."""
    return re.sub(r"^1[._](\d)$", r"\1", version)


def _is_in_range(wanted: str, ours: _Numbers) -> bool | None:
    """Understand the comparisons of PEP 440, npm, Cargo, RubyGems, Composer and Hex as far as they agree."""
    found = [_meets_all(part, ours) for part in re.split(r"\|\|?|\bor\b", wanted)]
    if True in found:
        return True
    return None if None in found else False


def _meets_all(part: str, ours: _Numbers) -> bool | None:
    part = _HYPHEN.sub(r">=\1 <=\2", part)
    found = _COMPARISON.findall(part)
    if not found or re.sub(_COMPARISON, "", part).strip(" ,\t"):
        return None
    return all(_meets(operator, version, ours) for operator, version in found)


def _meets(operator: str, version: str, ours: _Numbers) -> bool:
    theirs = _numbers(version)
    if theirs is None:  # an x alone: any
        return True
    order, is_same = _compare(ours, theirs), _is_within(ours, theirs)
    return {
        ">=": order >= 0,
        "<": order < 0 and not is_same,
        ">": order > 0 and not is_same,
        "<=": order <= 0 or is_same,
        "!=": not is_same,
        "~=": order >= 0 and _is_within(ours, theirs[:-1]),
        "~>": order >= 0 and _is_within(ours, theirs[:-1]),
        "^": order >= 0 and _is_within(ours, theirs[: _significant(theirs)]),
        "~": order >= 0 and _is_within(ours, theirs[:2]),
    }.get(operator, is_same)


def _significant(numbers: _Numbers) -> int:
    """Return how many numbers a caret holds fast: up to the first that is not 0."""
    return next((place + 1 for place, number in enumerate(numbers) if number), len(numbers))


def _compare(ours: _Numbers, theirs: _Numbers) -> int:
    """Compare as far as both are known: 3.11 is neither before nor after 3.11.4."""
    length = min(len(ours), len(theirs))
    return (ours[:length] > theirs[:length]) - (ours[:length] < theirs[:length])


def _is_within(ours: _Numbers, theirs: _Numbers) -> bool:
    length = min(len(ours), len(theirs))
    return ours[:length] == theirs[:length]


def _numbers(text: str) -> _Numbers | None:
    match = _NUMBER.match(text.replace("_", "."))
    return None if match is None else tuple(int(number) for number in match[1].split("."))

import pytest

from vmd.orchestrator.presets.rules import Meaning
from vmd.orchestrator.presets.versions import is_met


@pytest.mark.parametrize(
    ("wanted", "has", "expected"),
    [
        (">=3.9", "3.11.2", True),
        (">=3.12", "3.11.2", False),
        (">=3.9,<4", "3.11.2", True),
        (">=3.8,!=3.11.*", "3.11.2", False),
        ("~=3.10", "3.11.2", True),
        ("~=3.10.1", "3.11.2", False),
        ("^3.10", "3.11.2", True),
        ("^3.12", "3.11.2", False),
        ("==3.11.*", "3.11.2", True),
        ("<3.11", "3.11.2", False),
        ("<=3.11", "3.11.2", True),
        (">3.11", "3.11.2", False),
        (">=18", "18.20.4", True),
        (">= 18 < 20", "18.20.4", True),
        ("18.x || 20.x", "18.20.4", True),
        ("^20 || ^22", "18.20.4", False),
        ("16 - 18", "18.20.4", True),
        ("18", "18.20.4", True),
        ("*", "18.20.4", True),
        ("~18.19", "18.20.4", False),
        ("^0.2.3", "0.2.9", True),
        ("^0.2.3", "0.3.0", False),
        ("~> 3.0", "3.1.2", True),
        ("~> 3.0.1", "3.1.2", False),
        ("^8.1|^9", "8.2", True),
        ("lts/*", "18.20.4", None),
        (">=3.8rc1", "3.11.2", None),
        ("", "1", None),
        ("9" * 200, "1", None),
    ],
)
def test_ranges_are_read_as_their_tools_do(wanted: str, has: str, expected: bool | None) -> None:
    assert is_met(wanted, Meaning.RANGE, has) is expected


@pytest.mark.parametrize(
    ("wanted", "means", "has", "expected"),
    [
        ("3.11", Meaning.EXACTLY, "3.11.2", True),
        ("3.11.4", Meaning.EXACTLY, "3.11.2", False),
        ("v18", Meaning.EXACTLY, "18.20.4", True),
        ("stable", Meaning.EXACTLY, "1.63.0", None),
        ("1.19", Meaning.AT_LEAST, "1.19.8", True),
        ("1.21.0", Meaning.AT_LEAST, "1.19.8", False),
        ("17", Meaning.AT_LEAST, "17", True),
        ("1.8", Meaning.AT_LEAST, "17", True),
        ("1_8", Meaning.AT_LEAST, "17", True),
        ("21", Meaning.AT_LEAST, "17", False),
    ],
)
def test_single_versions(wanted: str, means: Meaning, has: str, expected: bool | None) -> None:
    assert is_met(wanted, means, has) is expected

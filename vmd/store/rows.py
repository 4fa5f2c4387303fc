"""Between columns and values: times as milliseconds, objects as JSON."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)
_encoder = msgspec.json.Encoder()


def millis(moment: datetime) -> int:
    """Return a moment as whole milliseconds since 1970."""
    return (moment - _EPOCH) // _MILLISECOND


def optional_millis(moment: datetime | None) -> int | None:
    """Return a moment as milliseconds, or None."""
    return None if moment is None else millis(moment)


def moment(value: int) -> datetime:
    """Return milliseconds since 1970 as a moment in UTC."""
    return datetime.fromtimestamp(value / 1000, UTC)


def optional_moment(value: int | None) -> datetime | None:
    """Return milliseconds as a moment, or None."""
    return None if value is None else datetime.fromtimestamp(value / 1000, UTC)


def encode(value: object) -> str:
    """Return a value as JSON text."""
    return _encoder.encode(value).decode()


def optional_json(value: object | None) -> str | None:
    """Return a value as JSON text, or None."""
    return None if value is None else encode(value)


def decoder(kind: Any) -> Callable[[str], Any]:
    """Return a function that reads JSON text as this type; what vmd wrote itself is not checked again."""
    return msgspec.json.Decoder(kind).decode

"""What goes over the wire for an event, made once for all who hear of it."""

from functools import lru_cache
from struct import pack

from attrs import fields

from vmd.http.wire import encode_json
from vmd.model.event import Event
from vmd.orchestrator.happenings import Resync

SHARED_FRAMES = 16  # kept for the next listener; those who are further behind make their own
_WHOLE_TEXT = 0x81  # FIN, and the opcode of text
_SHOWN = tuple(field.name for field in fields(Event) if field.name != "owner_id")


@lru_cache(maxsize=SHARED_FRAMES)
def text_frame(event: Event | Resync) -> bytes:
    """Return an event as a server's WebSocket frame, with its header (RFC 6455, section 5.2)."""
    payload = _json(event)
    size = len(payload)
    if size < 126:
        return pack("!BB", _WHOLE_TEXT, size) + payload
    if size < 1 << 16:
        return pack("!BBH", _WHOLE_TEXT, 126, size) + payload
    return pack("!BBQ", _WHOLE_TEXT, 127, size) + payload


@lru_cache(maxsize=SHARED_FRAMES)
def sent_event(event: Event | Resync) -> bytes:
    """Return an event as a server-sent one (WHATWG HTML, section 9.2)."""
    if isinstance(event, Resync):
        return b"event: resync\ndata: " + _json(event) + b"\n\n"
    return f"id: {event.seq}\nevent: {event.type}\n".encode() + b"data: " + _json(event) + b"\n\n"


def _json(event: Event | Resync) -> bytes:
    if isinstance(event, Resync):
        return b'{"type":"resync"}'
    return encode_json({name: getattr(event, name) for name in _SHOWN})

"""What goes over the wire to listeners: a server's WebSocket frames, and server-sent events."""

from functools import lru_cache
from struct import pack

from attrs import fields

from vmd.http.wire import encode_json
from vmd.model.event import Event
from vmd.orchestrator.happenings import Resync

SHARED_FRAMES = 16  # kept for the next listener; those who are further behind make their own
_WHOLE_TEXT = 0x81  # FIN, and the opcode of text
_WHOLE_BINARY = 0x82
PING = b"\x89\x00"
_SHOWN = tuple(field.name for field in fields(Event) if field.name != "owner_id")


def text_frame(payload: bytes) -> bytes:
    """Return a text frame of UTF-8, unmasked, as servers send it (RFC 6455, section 5.2)."""
    return _header(_WHOLE_TEXT, len(payload)) + payload


def binary_frame(payload: bytes) -> bytes:
    """Return a binary frame, unmasked."""
    return _header(_WHOLE_BINARY, len(payload)) + payload


@lru_cache(maxsize=SHARED_FRAMES)
def event_frame(event: Event | Resync) -> bytes:
    """Return the text frame of an event, made once for all who hear of it."""
    return text_frame(_json(event))


@lru_cache(maxsize=SHARED_FRAMES)
def sent_event(event: Event | Resync) -> bytes:
    """Return an event as a server-sent one (WHATWG HTML, section 9.2), made once for all who hear of it."""
    if isinstance(event, Resync):
        return b"event: resync\ndata: " + _json(event) + b"\n\n"
    return f"id: {event.seq}\nevent: {event.type}\n".encode() + b"data: " + _json(event) + b"\n\n"


def _header(kind: int, size: int) -> bytes:
    if size < 126:
        return pack("!BB", kind, size)
    if size < 1 << 16:
        return pack("!BBH", kind, 126, size)
    return pack("!BBQ", kind, 127, size)


def _json(event: Event | Resync) -> bytes:
    if isinstance(event, Resync):
        return b'{"type":"resync"}'
    return encode_json({name: getattr(event, name) for name in _SHOWN})

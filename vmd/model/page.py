"""One page of a list."""

from collections.abc import Callable
from typing import Generic, TypeVar

from attrs import frozen

T = TypeVar("T")
U = TypeVar("U")

DEFAULT_PAGE_SIZE = 50
MAX_PAGE_SIZE = 200


@frozen(kw_only=True)
class Page(Generic[T]):
    """Items, newest first, and the id to go on after, or None on the last page."""

    items: tuple[T, ...]
    next_after: str | None

    @classmethod
    def cut(cls, rows: list[T], limit: int, identify: Callable[[T], str]) -> "Page[T]":
        """Return the page of the first `limit` rows, given one row more than that if there is one."""
        items = tuple(rows[:limit])
        return cls(items=items, next_after=identify(items[-1]) if len(rows) > limit else None)

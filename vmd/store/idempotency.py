"""First answers, for requests that come again."""

from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

from attrs import frozen

from vmd.model.errors import ErrorCode, Refused
from vmd.store.database import Transaction
from vmd.store.rows import decoder, encode, millis

T = TypeVar("T")

KEPT = timedelta(hours=24)

FIND_ANSWER = """
SELECT fingerprint, answer FROM idempotency_keys
WHERE user_id = :user_id AND key = :key AND created_at > :since
"""
KEEP_ANSWER = """
INSERT OR REPLACE INTO idempotency_keys (user_id, key, fingerprint, answer, created_at)
VALUES (:user_id, :key, :fingerprint, :answer, :now)
"""
DELETE_OLD_ANSWERS = "DELETE FROM idempotency_keys WHERE created_at <= :since"


@frozen(kw_only=True)
class Once:
    """A request that is to take effect once, however often it comes."""

    key: str  # the client's Idempotency-Key
    fingerprint: bytes  # SHA-256 of the whole request


def answer_once(tx: Transaction, user_id: str, once: Once | None, kind: type[T], make: Callable[[], T]) -> T:
    """Return what `make` returns, or returned the first time; it and its answer are committed together.

    Raises Refused when the key came with another request before.
    """
    first = find_answer(tx, user_id, once, kind)
    if first is not None:
        return first
    answer = make()
    keep_answer(tx, user_id, once, answer)
    return answer


def find_answer(tx: Transaction, user_id: str, once: Once | None, kind: type[T]) -> T | None:
    """Return what was answered the first time; raise Refused when that was another request."""
    if once is None:
        return None
    values = {"user_id": user_id, "key": once.key, "since": millis(tx.now - KEPT)}
    row = tx.execute(FIND_ANSWER, values).fetchone()
    if row is None:
        return None
    if bytes(row["fingerprint"]) != once.fingerprint:
        raise Refused(
            ErrorCode.IDEMPOTENCY_MISMATCH,
            "This Idempotency-Key came with another request in the last 24 hours; use a new key.",
        )
    first: T = decoder(kind)(row["answer"])
    return first


def keep_answer(tx: Transaction, user_id: str, once: Once | None, answer: object) -> None:
    """Keep the answer for a request that may come again."""
    if once is not None:
        values = {
            "user_id": user_id,
            "key": once.key,
            "fingerprint": once.fingerprint,
            "answer": encode(answer),
            "now": millis(tx.now),
        }
        tx.execute(KEEP_ANSWER, values)


def delete_old_answers(tx: Transaction) -> int:
    """Forget answers that are no longer promised; return how many."""
    return tx.execute(DELETE_OLD_ANSWERS, {"since": millis(tx.now - KEPT)}).rowcount

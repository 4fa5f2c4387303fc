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
    if once is None:
        return make()
    values = {"user_id": user_id, "key": once.key}
    row = tx.execute(FIND_ANSWER, {**values, "since": millis(tx.now - KEPT)}).fetchone()
    if row is None:
        answer = make()
        kept = {"fingerprint": once.fingerprint, "answer": encode(answer), "now": millis(tx.now)}
        tx.execute(KEEP_ANSWER, {**values, **kept})
        return answer
    if bytes(row["fingerprint"]) != once.fingerprint:
        raise Refused(
            ErrorCode.IDEMPOTENCY_MISMATCH,
            "This Idempotency-Key came with another request in the last 24 hours; use a new key.",
        )
    first: T = decoder(kind)(row["answer"])
    return first


def delete_old_answers(tx: Transaction) -> int:
    """Forget answers that are no longer promised; return how many."""
    return tx.execute(DELETE_OLD_ANSWERS, {"since": millis(tx.now - KEPT)}).rowcount

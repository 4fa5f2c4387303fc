"""What the daemon keeps about itself."""

from vmd.store.database import Transaction

FIND_SETTING = "SELECT value FROM settings WHERE name = :name"
INSERT_SETTING = "INSERT INTO settings (name, value) VALUES (:name, :value)"
KEEP_SETTING = "INSERT OR REPLACE INTO settings (name, value) VALUES (:name, :value)"


def find_setting(tx: Transaction, name: str) -> str | None:
    """Return a kept value."""
    row = tx.execute(FIND_SETTING, {"name": name}).fetchone()
    return None if row is None else str(row["value"])


def insert_setting(tx: Transaction, name: str, value: str) -> None:
    """Keep a value that is not there yet."""
    tx.execute(INSERT_SETTING, {"name": name, "value": value})


def keep_setting(tx: Transaction, name: str, value: str) -> None:
    """Keep a value in place of the one that may be there."""
    tx.execute(KEEP_SETTING, {"name": name, "value": value})

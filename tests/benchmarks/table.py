"""What a measurement says, and the table of all of them."""

from collections.abc import Iterable, Sequence
from statistics import median

from attrs import frozen


@frozen(kw_only=True)
class Row:
    """One subject: ours beside a yardstick that was measured in the same run."""

    subject: str
    ours: str
    yardstick: str
    compared: float  # their ratio; where there is a unit, how much more ours is
    unit: str = ""
    bound: float | None  # None: printed for its own sake
    is_upper: bool  # whether it must be at most the bound, or at least

    def cells(self) -> tuple[str, ...]:
        """Return the row as text."""
        unit = f" {self.unit}" if self.unit else ""
        shown = f"{self.compared:+.2f}{unit}" if self.unit else f"{self.compared:.2f}"
        if self.bound is None:
            return self.subject, self.ours, self.yardstick, shown, "", ""
        is_met = self.compared <= self.bound if self.is_upper else self.compared >= self.bound
        wanted = f"{'<=' if self.is_upper else '>='} {self.bound:g}{unit}"
        return self.subject, self.ours, self.yardstick, shown, wanted, "ok" if is_met else "MISSED"


def middle(values: Sequence[float], unit: str, digits: int = 0) -> str:
    """Return the median of the values with their range."""
    low, mid, high = (f"{value:.{digits}f}" for value in (min(values), median(values), max(values)))
    return f"{mid} {unit} ({low}-{high})"


def text(rows: Iterable[Row]) -> str:
    """Return all rows as a table, its columns aligned."""
    lines = [
        ("subject", "ours: median (range)", "yardstick: median (range)", "compared", "wanted", ""),
        *(row.cells() for row in rows),
    ]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )

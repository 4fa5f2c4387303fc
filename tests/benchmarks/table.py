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
    ratio: float
    bound: float | None  # None: printed for its own sake
    is_upper: bool  # whether the ratio must be at most the bound, or at least

    def cells(self) -> tuple[str, ...]:
        """Return the row as text."""
        if self.bound is None:
            return self.subject, self.ours, self.yardstick, f"{self.ratio:.2f}", "", ""
        is_met = self.ratio <= self.bound if self.is_upper else self.ratio >= self.bound
        wanted = f"{'<=' if self.is_upper else '>='} {self.bound:g}"
        return (
            self.subject,
            self.ours,
            self.yardstick,
            f"{self.ratio:.2f}",
            wanted,
            "ok" if is_met else "MISSED",
        )


def middle(values: Sequence[float], unit: str, digits: int = 0) -> str:
    """Return the median of the values with their range."""
    low, mid, high = (f"{value:.{digits}f}" for value in (min(values), median(values), max(values)))
    return f"{mid} {unit} ({low}-{high})"


def text(rows: Iterable[Row]) -> str:
    """Return all rows as a table, its columns aligned."""
    lines = [
        ("subject", "ours: median (range)", "yardstick: median (range)", "ratio", "wanted", ""),
        *(row.cells() for row in rows),
    ]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )

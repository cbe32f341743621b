"""How figures and the page write numbers."""

from __future__ import annotations

MINUS, SPACE = "\N{MINUS SIGN}", "\N{NO-BREAK SPACE}"


def percent(share: float, digits: int = 0) -> str:
    """A share as a percentage: 0.915 is "92 %"."""
    return f"{100 * share:.{digits}f}{SPACE}%"


def points(value: float) -> str:
    """A signed difference in percentage points, without the unit."""
    text = f"{value:+.2f}"
    return "0.00" if float(text) == 0 else text.replace("-", MINUS)


def signed(value: float) -> str:
    """A number of two digits with its sign: "+0.5", "0"."""
    return f"{value:+.2g}".replace("-", MINUS) if value else "0"

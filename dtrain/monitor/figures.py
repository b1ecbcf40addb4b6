"""How figures are written for people."""

from __future__ import annotations


def describe_metric(name: str, value: float) -> str:
    """Return a metric's figure; an accuracy as a percentage."""
    return f"{100 * value:.2f} %" if name == "accuracy" else describe_number(value)


def describe_number(value: float) -> str:
    """Return a figure with four digits behind the point, or as a power of ten where that would say nothing."""
    return f"{value:.4f}" if value == 0 or 1e-3 <= abs(value) < 1e4 else f"{value:.3e}"


def short(value: float) -> str:
    """Return a figure with a sign for its thousands."""
    for limit, sign in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:.1f}{sign}"
    return f"{value:.0f}" if value >= 10 else f"{value:.1f}"


def describe_duration(seconds: float, decimals: int = 0) -> str:
    """Return seconds as minutes and hours."""
    if seconds < 60 and decimals:
        return f"{seconds:.{decimals}f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"

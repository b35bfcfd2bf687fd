"""How the text after a codec's name is read: ``rand_k:0.01`` or ``qsgd:16``. Everything else is a ValueError."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def arguments_of(form: str, arguments: Sequence[str], at_least: int, at_most: int) -> None:
    """Check the number of arguments; `form` is what the text should have been like.

    Raises:
        ValueError: too few or too many.
    """
    if not at_least <= len(arguments) <= at_most:
        raise ValueError(f"got {len(arguments)} arguments; write it as {form}")


def number_of(text: str, what: str, low: float, high: float) -> float:
    """Return a float with low < it ≤ high.

    Raises:
        ValueError: it is no number or out of range.
    """
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not low < value <= high:
        raise ValueError(f"{what} must be a number above {low:g} and at most {high:g}, got {text!r}")
    return value


def whole_of(text: str, what: str, low: int, high: int) -> int:
    """Return an int from low to high.

    Raises:
        ValueError: it is no whole number or out of range.
    """
    if not text.isascii() or not text.isdigit() or not low <= int(text) <= high:
        raise ValueError(f"{what} must be a whole number from {low} to {high}, got {text!r}")
    return int(text)


def share_or_count(text: str) -> float:
    """Return q: below 1 a share of the elements, from 1 on a whole number of them.

    Raises:
        ValueError: neither.
    """
    value = number_of(text, "share or count", 0.0, 1e12)
    if value >= 1 and value != int(value):
        raise ValueError(f"a count must be a whole number, got {text!r}; a share lies below 1")
    return value


def kept(q: float, elements: int) -> int:
    """Return K, the elements kept of d = `elements`: at least 1, at most all."""
    return min(elements, max(1, round(q * elements) if q < 1 else int(q)))


def text_of(value: float) -> str:
    """Return the canonical text of a number: ``16``, ``0.01``, ``1e-05``."""
    return str(int(value)) if value == int(value) and value < 1e15 else repr(float(value))

"""Where in a TOML file a setting stands, so that an error can name the line.

Only as much TOML is read as our own configuration files use: table headers and ``key = value`` lines. What is written
otherwise, such as a key inside an inline table, is given the line of what holds it.
"""

from __future__ import annotations

import re

_HEADER = re.compile(r"^\s*(\[\[?)\s*([^\]]+?)\s*\]\]?")
_KEY = re.compile(r"""^\s*((?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*')(?:\s*\.\s*(?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*'))*)\s*=""")
_Location = tuple[str | int, ...]


def line_of(text: str, location: _Location) -> int | None:
    """Return the number of the line, from 1, that sets `location`, or of the nearest thing around it."""
    places = _places(text)
    for length in range(len(location), 0, -1):
        if location[:length] in places:
            return places[location[:length]]
    return None


def _places(text: str) -> dict[_Location, int]:
    places: dict[_Location, int] = {}
    counts: dict[_Location, int] = {}
    table: _Location = ()
    for number, line in enumerate(text.splitlines(), start=1):
        if header := _HEADER.match(line):
            table = _resolve(_split(header[2]), counts)
            if header[1] == "[[":
                counts[table] = counts.get(table, -1) + 1
                table = (*table, counts[table])
            places.setdefault(table, number)
        elif key := _KEY.match(line):
            places.setdefault((*table, *_split(key[1])), number)
    return places


def _split(dotted: str) -> list[str]:
    return [part.strip().strip("\"'") for part in dotted.split(".")]


def _resolve(parts: list[str], counts: dict[_Location, int]) -> _Location:
    """Insert the index of the latest element wherever the path runs through an array of tables."""
    location: _Location = ()
    for position, part in enumerate(parts):
        location = (*location, part)
        if location in counts and position < len(parts) - 1:
            location = (*location, counts[location])
    return location

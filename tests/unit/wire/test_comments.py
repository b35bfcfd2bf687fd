"""The protocol's source is its reference: a field without a comment is one that nobody can implement from it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PROTOS = sorted((Path(__file__).parents[3] / "protos").rglob("*.proto"))
FIELD = re.compile(r"^\s*(?:repeated |optional )?[\w.]+(?:<[\w., ]+>)? \w+ = \d+(?: \[.*\])?;")


def uncommented(text: str) -> list[str]:
    lines = text.splitlines()
    above = ["", *lines]
    return [
        line.strip()
        for line, before in zip(lines, above, strict=False)
        if FIELD.match(line) and "//" not in line and not before.strip().startswith("//")
    ]


@pytest.mark.parametrize("path", PROTOS, ids=lambda path: path.stem)
def test_every_field_has_a_comment(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert any(FIELD.match(line) for line in text.splitlines())
    assert uncommented(text) == []


def test_a_field_without_a_comment_would_be_noticed() -> None:
    assert uncommented(
        "message A {\n  // said\n  string a = 1;\n  map<string, double> b = 2;\n  bool c = 3; // said\n}"
    ) == ["map<string, double> b = 2;"]

"""What the documents generate from the code is up to date, and drift is noticed."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from types import ModuleType

ROOT = Path(__file__).parents[3]


def load_generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs" / "generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


generate = load_generator()


@pytest.mark.parametrize("page", generate.pages(), ids=lambda page: page.name)
def test_generated_parts_are_up_to_date(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert generate.renew(text) == text, "run `python docs/generate.py`"


def test_every_part_has_a_place_in_some_page() -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in generate.pages())
    assert [name for name in generate.PARTS if f"<!-- generated {name} -->" not in text] == []


def test_a_page_that_drifted_is_mended_and_only_between_its_markers() -> None:
    text = "before\n<!-- generated exit-codes -->\nold\n<!-- end generated -->\nafter\n"
    renewed = generate.renew(text)
    assert renewed.startswith("before\n<!-- generated exit-codes -->\n| code |")
    assert renewed.endswith("<!-- end generated -->\nafter\n")
    assert "\nold\n" not in renewed


def test_an_unknown_part_is_an_error() -> None:
    with pytest.raises(KeyError, match="no-such-part"):
        generate.renew("<!-- generated no-such-part -->\n<!-- end generated -->\n")


@pytest.mark.parametrize("part", ["director-settings", "envoy-settings", "client-settings"])
def test_every_setting_has_a_meaning_and_a_default_without_a_path_of_this_machine(part: str) -> None:
    rows = [line.split(" | ") for line in generate.PARTS[part]().splitlines() if line.startswith("| `")]
    assert rows
    for row in rows:
        assert len(row) == 3, row
        assert row[2].strip(" |"), f"{row[0]} has no description"
        assert not row[1].startswith("/"), row


def test_every_plan_field_is_explained() -> None:
    from federation.plan import Plan

    rows = generate.PARTS["plan-fields"]()
    assert all(f"| `{name}` | " in rows for name in Plan.model_fields)


def test_every_method_has_its_page_with_its_options() -> None:
    from federation.algorithms.registry import BUILT_IN

    assert generate.new_pages() == {}, "run `python docs/generate.py`"
    for name, method in BUILT_IN.items():
        text = (ROOT / "docs" / "methods" / f"{name.replace('_', '-')}.md").read_text(encoding="utf-8")
        assert text.count("\n# ") + text.startswith("# ") == 1 and method.source in text
        rows = [line for line in text.splitlines() if line.startswith("| `")]
        assert [row.split("`")[1] for row in rows] == list(method.model_fields)
        assert [row for row in rows if row.split(" | ")[2].strip(" |") == ""] == []


def test_every_codec_is_in_its_table() -> None:
    from federation.compression.registry import BUILT_IN

    written = [
        line.split("`")[1].partition(":")[0] for line in generate.codecs().splitlines() if line.startswith("| `")
    ]
    assert written == list(BUILT_IN)

"""Writes the parts of these documents that the code already knows: ``python docs/generate.py``.

A page holds a pair of markers, ``<!-- generated NAME -->`` and ``<!-- end generated -->``; what stands between them is
replaced by what `PARTS` makes from transition tables, settings, exit codes, metrics, and the docstrings of methods,
codecs and rules; each method has a page of its own in ``methods/``, made here when it is new. With ``--check`` nothing
is written and a page that differs is an error; a test does the same, so that code and documents change in one commit.
"""

from __future__ import annotations

import enum
import functools
import inspect
import re
import sys
import typing
from pathlib import Path
from typing import Any

from prometheus_client.metrics import MetricWrapperBase
from pydantic import BaseModel

from director.config import DirectorSettings
from director.lifecycle import TRANSITIONS
from envoy.config import EnvoySettings
from federation.aggregation.registry import PRE_AGGREGATIONS, RULES
from federation.aggregation.rule import AggregationRule
from federation.algorithms.registry import BUILT_IN as METHODS
from federation.client.exits import Exit
from federation.client.profile import Profile
from federation.compression import load_codec
from federation.compression.registry import BUILT_IN as CODECS
from federation.names import ExperimentState
from federation.plan import Plan
from federation.rounds.asynchronous import describe_async_states
from federation.rounds.machine import describe_states
from federation.telemetry.metrics import Metrics

if typing.TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from pydantic.fields import FieldInfo

    from federation.aggregation.before.pre_aggregation import PreAggregation
    from federation.algorithms.algorithm import Algorithm

FOLDER = Path(__file__).parent
_BLOCK = re.compile(r"(<!-- generated (?P<name>[a-z0-9-]+) -->\n).*?(<!-- end generated -->)", re.DOTALL)
_DEFAULT = re.compile(r"^(?P<meaning>.*?)\s*Default: (?P<default>.*?)\.?$", re.DOTALL)


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a Markdown table; what would end a cell is escaped."""
    titles = list(head)
    lines = ["| " + " | ".join(titles) + " |", "| " + " | ".join("---" for _ in titles) + " |"]
    for row in rows:
        lines.append("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ").strip() for cell in row) + " |")
    return "\n".join(lines) + "\n"


def experiment_states() -> str:
    """Return the states of an experiment as a Mermaid diagram."""
    lines = ["stateDiagram-v2", f"    [*] --> {ExperimentState.SUBMITTED.value}"]
    for state in ExperimentState:
        lines += [f"    {state.value} --> {to.value}" for to in ExperimentState if to in TRANSITIONS[state]]
    lines += [f"    {state.value} --> [*]" for state in ExperimentState if state.is_terminal]
    return "```mermaid\n" + "\n".join(lines) + "\n```\n"


def round_phases() -> str:
    """Return the phases of a round, and those of an asynchronous one, as Mermaid diagrams."""
    asynchronous = f"Of asynchronous methods:\n\n```mermaid\n{describe_async_states()}```\n"
    return f"```mermaid\n{describe_states()}```\n\n{asynchronous}"


def settings(model: type[BaseModel], prefix: str) -> str:
    """Return every setting of a model: a table for its own fields and one for each of its sections."""
    own = []
    sections = []
    for name, field in model.model_fields.items():
        inner, is_list = _section_of(field.annotation)
        if inner is None:
            own.append(_setting_row(name, field, f"{prefix}_{name.upper()}"))
        else:
            title = f"[[{name}]]" if is_list else f"[{name}]"
            what = (inspect.getdoc(inner) or "").partition(": ")[2].split("\n")[0]
            rows = [
                _setting_row(key, entry, "" if is_list else f"{prefix}_{name.upper()}__{key.upper()}")
                for key, entry in inner.model_fields.items()
            ]
            head = f"**`{title}`** {what}\n\n"
            sections.append(head + table(("key", "default", "meaning"), (row[:3] for row in rows)))
    variable = f"Any of them from the environment: `{own[-1][3]}`"
    nested = next((name for name, field in model.model_fields.items() if _is_plain_section(field)), None)
    if nested is not None:
        inner, _ = _section_of(model.model_fields[nested].annotation)
        assert inner is not None  # noqa: S101 - _is_plain_section says so
        key = next(iter(inner.model_fields))
        variable += f", in a section `{prefix}_{nested.upper()}__{key.upper()}`"
    parts = [variable + ".\n", table(("key", "default", "meaning"), (row[:3] for row in own)), *sections]
    return "\n".join(parts)


def _is_plain_section(field: FieldInfo) -> bool:
    inner, is_list = _section_of(field.annotation)
    return inner is not None and not is_list


def _section_of(annotation: Any) -> tuple[type[BaseModel] | None, bool]:
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return annotation, False
    if typing.get_origin(annotation) is list:
        inner = typing.get_args(annotation)[0]
        if inspect.isclass(inner) and issubclass(inner, BaseModel):
            return inner, True
    return None, False


def _setting_row(name: str, field: FieldInfo, variable: str) -> tuple[str, str, str, str]:
    text = field.description or ""
    found = _DEFAULT.match(text)
    if found:
        default, text = found["default"], found["meaning"]
    elif field.is_required():
        default = "required"
    else:
        default = _shown(field.get_default(call_default_factory=True))
    choices = [str(choice) for choice in typing.get_args(field.annotation) if isinstance(choice, str)]
    if typing.get_origin(field.annotation) is typing.Literal and not all(choice in text for choice in choices):
        text += f" One of {', '.join(choices)}."
    return f"`{name}`", default, text, variable


def _shown(value: object) -> str:
    if value in (None, "", [], {}, ()):
        return "none"
    if isinstance(value, enum.Enum):
        return str(value.value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def plan_fields() -> str:
    """Return the fields of `Plan`, with the meanings its docstring gives them."""
    meanings = _attributes(inspect.getdoc(Plan) or "")
    rows = []
    for name, field in Plan.model_fields.items():
        default = field.get_default(call_default_factory=True)
        shown = "; ".join(f"{key} {value}" for key, value in default) if isinstance(default, BaseModel) else default
        rows.append((f"`{name}`", _shown(shown) if shown is not None else "`None`", meanings[name]))
    return table(("field", "default", "meaning"), rows)


def _attributes(docstring: str) -> dict[str, str]:
    _, _, text = docstring.partition("Attributes:\n")
    meanings: dict[str, str] = {}
    name = ""
    for line in text.split("\n\n")[0].splitlines():
        found = re.match(r"    (\w+): (.*)", line)
        if found:
            name = found[1]
            meanings[name] = found[2]
        elif name:
            meanings[name] += " " + line.strip()
    return {name: text.replace("``", "`") for name, text in meanings.items()}


def exit_codes() -> str:
    """Return the exit codes of the `federation` command."""
    return table(("code", "name", "meaning"), ((str(code.value), code.name, code.meaning) for code in Exit))


def metrics() -> str:
    """Return every metric any process shows."""
    return table(("metric", "kind", "labels", "meaning"), sorted(_metric_rows(Metrics())))


def _metric_rows(source: Metrics) -> Iterator[tuple[str, str, str, str]]:
    labels: dict[str, tuple[str, ...]] = {"federation_certificate_expiry_seconds": ("identity",)}
    for value in vars(source).values():
        if isinstance(value, MetricWrapperBase):
            labels[next(iter(value.describe())).name] = value._labelnames  # the library shows it nowhere else
    for family in source.registry.collect():
        name = family.name + ("_total" if family.type == "counter" else "")
        yield f"`{name}`", family.type, ", ".join(labels.get(family.name, ())), family.documentation


def methods() -> str:
    """Return the built-in methods: what each is for, where it comes from, what it keeps and sends."""
    rows = []
    for name, method in METHODS.items():
        claim = _plain(inspect.getdoc(method) or "").split("\n\n")[0]
        sent = [*(f"up: {each}" for each in method.vectors), *(f"down: {each}" for each in method.broadcast)]
        runs = "asynchronous" if method.mode == "buffer" else "in rounds"
        kept = ", ".join(method.slots) or "nothing"
        rows.append(
            (f"[{method.title}]({_slug(name)}.md)", f"`{name}`", claim, kept, ", ".join(sent) or "nothing", runs)
        )
    return table(
        ("method", "`algorithm`", "what it is for", "the server keeps", "vectors beside the model", "runs"), rows
    )


def method_page(method: type[Algorithm]) -> str:
    """Return the page of one method, from its docstring and fields."""
    text = inspect.getdoc(method) or ""
    body, _, _ = text.partition("\nAttributes:\n")
    body, _, example = body.partition("\nExample:\n")
    meanings = _attributes(text)
    parts = [f"# {method.title}\n", _plain(body).strip() + "\n", f"Source: {method.source}.\n"]
    if example:
        parts.append("## Example\n\n" + _plain(inspect.cleandoc(example)) + "\n")
    rows = [
        (f"`{name}`", _shown(field.get_default(call_default_factory=True)), meanings.get(name, ""))
        for name, field in method.model_fields.items()
    ]
    options = table(("option", "default", "meaning"), rows) if rows else "It has none.\n"
    parts += ["## Options\n\nSet with `Plan(options={...})`.\n\n" + options, "[All methods](README.md)\n"]
    return "\n".join(parts)


def codecs() -> str:
    """Return the codecs: how each is written, what it does, and its figures for a matrix of 1000 × 1000 float32."""
    rows, texts = [], []
    elements = 1_000_000
    for name, factory in CODECS.items():
        made = inspect.getdoc(factory) or ""
        found = re.search(r"``([a-z0-9_]+(?::[^`]*)?)``", made)
        spec = found[1] if found and found[1].partition(":")[0] == name else name
        codec = load_codec(spec)
        bits = 8 * codec.max_bytes(elements, 4, [(1000, 1000)]) / elements
        kind = f"unbiased, ω = {codec.omega(elements):.4g}" if codec.is_unbiased else "biased"
        claim = _plain(inspect.getdoc(type(codec)) or "").partition("\nAttributes:\n")[0].strip()
        rows.append((f"`{spec}`", claim.split("\n\n")[0], kind, f"{bits:.3g}"))
        rest = "\n\n".join(claim.split("\n\n")[1:])
        if rest:
            texts.append(f"**`{name}`** {rest}\n")
    return table(("written", "what it does", "kind", "bits a value, at most"), rows) + "\n" + "\n".join(texts)


def rules() -> str:
    """Return the aggregation rules: a table of all, then each with what it stands, its formula and its options."""
    rows = [
        (f"[{rule.title}](#{_anchor(rule.title)})", f"`{name}`", rule.condition, _parts(rule)[0])
        for name, rule in RULES.items()
    ]
    head = table(("rule", "`rule`", "stands f hostile of n where", "what it does"), rows)
    return "\n".join([head, *(_rule_text(rule, f"`{name}`") for name, rule in RULES.items())])


def pre_aggregations() -> str:
    """Return what may come before a rule, each with its formula and what is written after the colon."""
    texts = []
    for name, step in PRE_AGGREGATIONS.items():
        written = f"`{name}:{next(iter(step.model_fields)).upper()}`" if step.model_fields else f"`{name}`"
        texts.append(_rule_text(step, written))
    return "\n".join(texts)


def _rule_text(kind: type[AggregationRule | PreAggregation], written: str) -> str:
    claim, about, formula = _parts(kind)
    condition = f" Condition: {kind.condition}." if issubclass(kind, AggregationRule) else ""
    text = [
        f"### {kind.title}\n",
        f"{written}. {claim} {about}\n",
        f"> {formula}\n",
        f"Source: {kind.source}.{condition}\n",
    ]
    meanings = _attributes(inspect.getdoc(kind) or "")
    rows = [
        (f"`{name}`", "required" if field.is_required() else _shown(field.default), meanings.get(name, ""))
        for name, field in kind.model_fields.items()
    ]
    return "\n".join([*text, table(("option", "default", "meaning"), rows)] if rows else text)


def _parts(kind: type[AggregationRule | PreAggregation]) -> tuple[str, str, str]:
    """Return a rule's claim, what it is good for and its formula."""
    body = _plain(inspect.getdoc(kind) or "").partition("\nAttributes:\n")[0].strip()
    claim, about, formula = (" ".join(part.split()) for part in body.split("\n\n"))
    return claim, about, formula.removeprefix("Formula: ")


def _anchor(title: str) -> str:
    return re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-")


def _plain(text: str) -> str:
    return text.replace("``", "`")


def _slug(name: str) -> str:
    return name.replace("_", "-")


PARTS: dict[str, Callable[[], str]] = {
    "experiment-states": experiment_states,
    "round-phases": round_phases,
    "director-settings": lambda: settings(DirectorSettings, "DIRECTOR"),
    "envoy-settings": lambda: settings(EnvoySettings, "ENVOY"),
    "client-settings": lambda: settings(Profile, "FEDERATION"),
    "plan-fields": plan_fields,
    "exit-codes": exit_codes,
    "metrics": metrics,
    "methods": methods,
    "codecs": codecs,
    "rules": rules,
    "pre-aggregations": pre_aggregations,
    **{f"method-{_slug(name)}": functools.partial(method_page, method) for name, method in METHODS.items()},
}


def renew(text: str) -> str:
    """Return a page with every generated part made anew.

    Raises:
        KeyError: a marker names a part that is not in `PARTS`.
    """
    return _BLOCK.sub(lambda block: f"{block[1]}{PARTS[block['name']]()}{block[3]}", text)


def pages() -> list[Path]:
    """Return the pages that may hold generated parts."""
    return [FOLDER.parent / "README.md", *sorted(FOLDER.glob("*.md")), *sorted((FOLDER / "methods").glob("*.md"))]


def new_pages() -> dict[Path, str]:
    """Return the pages of methods that have none yet, and the markers to begin them with."""
    made = {FOLDER / "methods" / f"{_slug(name)}.md": f"method-{_slug(name)}" for name in METHODS}
    return {
        page: f"<!-- generated {part} -->\n<!-- end generated -->\n" for page, part in made.items() if not page.exists()
    }


def main(arguments: list[str]) -> int:
    """Renew all pages, or with ``--check`` say which are not up to date."""
    if "--check" not in arguments:
        for page, text in new_pages().items():
            page.write_text(text, encoding="utf-8")
    stale = [page for page in pages() if renew(page.read_text(encoding="utf-8")) != page.read_text(encoding="utf-8")]
    for page in stale:
        if "--check" in arguments:
            print(f"{page.name} is not up to date: run `python docs/generate.py`", file=sys.stderr)
        else:
            page.write_text(renew(page.read_text(encoding="utf-8")), encoding="utf-8")
            print(f"renewed {page.name}")
    return 1 if stale and "--check" in arguments else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

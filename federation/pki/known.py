"""``known.toml``: the signing keys a silo pins, by people comparing fingerprints out of band.

::

    [users]
    alice = "sha256:9f…"
    [sites]
    north = "sha256:02…"

A name has one key at a time. A pin is changed only on purpose: a changed fingerprint is exactly what an attack looks
like. A missing file pins nobody.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from federation.errors import ConfigurationError, InvalidNameError
from federation.names import check_name
from federation.pki.files import make_private_folder, read, write_public

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

Kind = Literal["users", "sites"]
_KINDS: tuple[Kind, ...] = ("users", "sites")
_FINGERPRINT = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownKeys:
    """Pinned fingerprints by name.

    Attributes:
        users: keys that may sign bundles.
        sites: keys of other sites.
    """

    users: Mapping[str, str] = field(default_factory=dict)
    sites: Mapping[str, str] = field(default_factory=dict)


def load_known(path: Path) -> KnownKeys:
    """Read the pins; none if there is no file.

    Raises:
        ConfigurationError: the file is not what the module says.
    """
    if not path.exists():
        return KnownKeys()
    try:
        tables = tomllib.loads(read(path, "known keys").decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} is not TOML: {error}") from error
    for kind in tables:
        if kind not in _KINDS:
            raise ConfigurationError(f"{path} has a table [{kind}]: [users] and [sites] are expected")
    return KnownKeys(users=_table(path, tables, "users"), sites=_table(path, tables, "sites"))


def pin(path: Path, kind: Kind, name: str, fingerprint: str, *, force: bool = False) -> KnownKeys:
    """Pin a key in the file at `path`, made if missing, and return all pins.

    Args:
        path: the file.
        kind: table the name belongs to.
        name: user or site.
        fingerprint: ``sha256:`` and 64 hex digits.
        force: replace another fingerprint pinned for this name.

    Raises:
        InvalidNameError: `name` is not valid.
        ConfigurationError: the fingerprint is none, or the name has another one and `force` is False.
        StorageError: the file cannot be written.
    """
    check_name(name, "name")
    _check_fingerprint(fingerprint, "the fingerprint")
    known = load_known(path)
    tables: dict[Kind, dict[str, str]] = {"users": dict(known.users), "sites": dict(known.sites)}
    pinned = tables[kind].get(name, fingerprint)
    if pinned != fingerprint and not force:
        raise ConfigurationError(
            f"{name} is pinned to {pinned}, not {fingerprint}: ask {name} on another channel whether the key changed, "
            "then pin with --force"
        )
    tables[kind][name] = fingerprint
    make_private_folder(path.parent)
    write_public(path, _to_toml(tables).encode(), force=True)
    return KnownKeys(users=tables["users"], sites=tables["sites"])


def _table(path: Path, tables: Mapping[str, object], kind: Kind) -> dict[str, str]:
    table = tables.get(kind, {})
    if not isinstance(table, dict):
        raise ConfigurationError(f'{path}: {kind} must be a table of name = "sha256:…"')
    for name, value in table.items():
        try:
            check_name(name, f"{path}: name in [{kind}]")
        except InvalidNameError as error:
            raise ConfigurationError(str(error)) from error
        _check_fingerprint(value, f"{path}: {kind}.{name}")
    return dict(table)


def _check_fingerprint(value: object, where: str) -> None:
    if not isinstance(value, str) or not _FINGERPRINT.fullmatch(value):
        raise ConfigurationError(
            f"{where} must be sha256: and 64 lower-case hex digits (`federation pki fingerprint`), got {value!r:.100}"
        )


def _to_toml(tables: Mapping[Kind, Mapping[str, str]]) -> str:
    # names and fingerprints are checked, so nothing in them needs quoting
    lines = ["# Signing keys compared out of band; see `federation pki pin`."]
    for kind in _KINDS:
        lines.append(f"[{kind}]")
        lines.extend(f'{name} = "{value}"' for name, value in sorted(tables[kind].items()))
    return "\n".join(lines) + "\n"

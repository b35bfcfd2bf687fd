"""Settings of a daemon: a TOML file, overridden by the environment, checked once and wholly.

Rules:

1. A setting is taken from the environment, else from the file, else from its default. The variable's name is the
   model's prefix and the key, nested keys joined by ``__``: ``DIRECTOR_LISTEN__PORT``.
2. A key that no model has is an error that names the nearest valid one, at every depth; so is a variable of the
   environment that names a section and no key of it. One whose first part is no key is a warning, because Kubernetes
   puts variables of its own there.
3. A relative path, whether written or a default, is relative to the file's folder; ``~`` is the user's home. Paths
   are resolved after validation: a model's own validators see them as they were written.
4. All problems are reported in one `ConfigurationError`, each with the variable or the line it comes from where there
   is one.
"""

from __future__ import annotations

import difflib
import json
import logging
import os
import tomllib
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsError

from federation.errors import ConfigurationError
from federation.runtime.setting_lines import line_of

_log = logging.getLogger(__name__)
_S = TypeVar("_S", bound=BaseSettings)
_Location = tuple[str | int, ...]
_AS_JSON = 'a section or a list is given as JSON, such as ["a", "b"]'


def load_settings(model: type[_S], path: Path | None, environ: Mapping[str, str] | None = None) -> _S:
    """Return the settings of a process.

    Args:
        model: what may be set; its ``env_prefix`` and ``env_nested_delimiter`` name the variables.
        path: TOML file; None takes environment and defaults only.
        environ: environment to read; None means this process's own.

    Raises:
        ConfigurationError: the file cannot be read, a key is unknown, or a value is not valid.
    """
    text, values = _read(path)
    environment = dict(os.environ if environ is None else environ)
    problems = [*_unknown_keys(model, values, (), text), *_unknown_variables(model, environment)]
    settings: _S | None = None
    try:
        settings = _with_sources(model, environment)(**values)
    except SettingsError as error:
        problems += list(_not_json(model, environment)) or [f"environment: {error}: {_AS_JSON}"]
    except ValidationError as error:
        variables = _variables(model, environment)
        problems += [p for p in (_describe(e, text, variables) for e in error.errors()) if p is not None]
    if problems or settings is None:
        where = str(path) if path else "environment"
        raise ConfigurationError(f"{where} is not valid:\n" + "\n".join(f"  {problem}" for problem in problems))
    folder = path.resolve().parent if path else Path.cwd()
    return _resolve_paths(settings, folder)


def _read(path: Path | None) -> tuple[str, dict[str, Any]]:
    if path is None:
        return "", {}
    try:
        text = path.read_text(encoding="utf-8")
        return text, tomllib.loads(text)
    except FileNotFoundError as error:
        raise ConfigurationError(f"configuration file {path} does not exist") from error
    except OSError as error:
        raise ConfigurationError(f"configuration file {path} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"configuration file {path} is not TOML: {error}") from error


def _with_sources(model: type[_S], environment: dict[str, str]) -> type[_S]:
    """Return `model` as a class that lets the given environment win over the arguments, which are the file's."""

    class Loaded(model):  # type: ignore[valid-type, misc]  # a class made at run time
        """The model, read from this environment first."""

        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            """Let the given environment stand for the process's, before the arguments."""
            folded = {name.lower(): value for name, value in environment.items()}
            if hasattr(env_settings, "env_vars"):
                env_settings.env_vars = folded
            return env_settings, init_settings

    Loaded.__name__ = Loaded.__qualname__ = model.__name__
    return Loaded


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield the model a value of this annotation is, or may be: itself, or a member of a union."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) in (Union, types.UnionType):
        for member in get_args(annotation):
            yield from _models_in(member)


def _parts_of(annotation: Any, value: Any) -> Iterator[tuple[str | int, Any, Any]]:
    """Yield key, annotation and value of each element, if the annotation is a collection."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        for member in arguments:
            yield from _parts_of(member, value)
    elif origin in (list, tuple, set, frozenset) and isinstance(value, list) and arguments:
        for index, element in enumerate(value):
            yield index, arguments[0], element
    elif origin in (dict, Mapping) and isinstance(value, dict) and len(arguments) == 2:
        for key, element in value.items():
            yield key, arguments[1], element


def _unknown_keys(annotation: Any, value: Any, location: _Location, text: str) -> Iterator[str]:
    models = list(_models_in(annotation))
    if models and isinstance(value, dict):
        fields = {(field.alias or name): field.annotation for m in models for name, field in m.model_fields.items()}
        for key, element in value.items():
            here = (*location, key)
            if key in fields:
                yield from _unknown_keys(fields[key], element, here, text)
            else:
                yield f"{_place(text, here)}unknown key {_dotted(here)!r}{_nearest(key, fields)}"
    for key, inner, element in _parts_of(annotation, value):
        yield from _unknown_keys(inner, element, (*location, key), text)


def _nearest(key: str, valid: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(key, valid, n=1, cutoff=0.5)
    if close:
        return f": did you mean {close[0]!r}?"
    return f": valid keys here are {', '.join(sorted(valid))}"


def _variables(model: type[BaseSettings], environment: Mapping[str, str]) -> dict[_Location, str]:
    """Return the variables of the environment that are named as settings are, by the place each would set."""
    prefix = str(model.model_config.get("env_prefix", "")).lower()
    if not prefix:
        return {}
    return {
        tuple(variable.lower().removeprefix(prefix).split("__")): variable
        for variable in environment
        if variable.lower().startswith(prefix)
    }


def _unknown_variables(model: type[BaseSettings], environment: Mapping[str, str]) -> Iterator[str]:
    """Yield a problem for each variable that names no key of a section; warn of those that name nothing (rule 2)."""
    for location, variable in _variables(model, environment).items():
        annotation: Any = model
        for depth, part in enumerate(location, start=1):
            fields = {name: field.annotation for m in _models_in(annotation) for name, field in m.model_fields.items()}
            if not fields:
                break  # within a value, which is judged whole
            if part in fields:
                annotation = fields[str(part)]
                continue
            nearest = _nearest(str(part), fields)
            if depth == 1:
                _log.warning("environment variable %s sets nothing%s", variable, nearest)
            else:
                yield f"environment variable {variable}: unknown key {_dotted(location[:depth])!r}{nearest}"
            break


def _not_json(model: type[BaseSettings], environment: Mapping[str, str]) -> Iterator[str]:
    """Yield a problem for each variable that sets a whole section, list or table to what is no JSON."""
    for location, variable in _variables(model, environment).items():
        annotation: Any = model
        for part in location:
            fields = {name: field.annotation for m in _models_in(annotation) for name, field in m.model_fields.items()}
            annotation = fields.get(str(part))
        members = (annotation, *get_args(annotation))
        if any(
            list(_models_in(member)) or get_origin(member) in (list, tuple, set, frozenset, dict) for member in members
        ):
            try:
                json.loads(environment[variable])
            except ValueError:
                yield f"environment variable {variable}: {_AS_JSON}"


def _describe(error: Any, text: str, variables: Mapping[_Location, str]) -> str | None:
    """Return one problem that pydantic found as a line, or None if rule 2 reports it already."""
    if error["type"] == "extra_forbidden":
        return None
    location = tuple(error["loc"])
    message = str(error["msg"]).removeprefix("Value error, ")
    got = error.get("input")
    # Only plain scalars are shown: a string may hold the password of a database.
    shown = f", got {got!r}" if isinstance(got, bool | int | float) else ""
    variable = next((variables[part] for part in _around(location) if part in variables), "")
    place = f"environment variable {variable}: " if variable else _place(text, location)
    return f"{place}{_dotted(location) or 'settings'}: {message}{shown}"


def _around(location: _Location) -> Iterator[_Location]:
    """Yield the place and what holds it, from within."""
    for length in range(len(location), 0, -1):
        yield location[:length]


def _dotted(location: _Location) -> str:
    dotted = ""
    for part in location:
        dotted += f"[{part}]" if isinstance(part, int) else f".{part}" if dotted else part
    return dotted


def _place(text: str, location: _Location) -> str:
    line = line_of(text, location)
    return f"line {line}: " if line else ""


_Model = TypeVar("_Model", bound=BaseModel)


def _resolve_paths(settings: _Model, folder: Path) -> _Model:
    """Return a copy in which every path is absolute."""
    changes = {name: _resolved(getattr(settings, name), folder) for name in type(settings).model_fields}
    return settings.model_copy(update=changes)


def _resolved(value: Any, folder: Path) -> Any:
    if isinstance(value, Path):
        return folder / value.expanduser()
    if isinstance(value, BaseModel):
        return _resolve_paths(value, folder)
    if isinstance(value, dict):
        return {key: _resolved(element, folder) for key, element in value.items()}
    if type(value) in (list, tuple, set, frozenset):
        return type(value)(_resolved(element, folder) for element in value)
    return value

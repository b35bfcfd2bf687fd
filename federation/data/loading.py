"""From a line in a site's configuration to a shard that can be trained on.

Only a trainer calls this: a factory is code of the site's owner or of someone he trusts, and it reads patients. Every
way it can fail names the shard and its factory and says what to do, because the person who reads it is the site's
operator, not the author of the experiment.
"""

from __future__ import annotations

import importlib
import inspect
from typing import TYPE_CHECKING, Any

from federation.data.shard import Shard, count_examples, is_pair
from federation.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


class ShardError(ConfigurationError):
    """A shard cannot be offered; its owner mends factory, options or data.

    Attributes:
        error_class: class name of what the factory raised, or of this error.
    """

    def __init__(self, text: str, *, error_class: str = "ShardError") -> None:
        super().__init__(text)
        self.error_class = error_class


def load_shard(name: str, factory: str, options: Mapping[str, Any]) -> Shard:
    """Import a factory, call it and check what it gives.

    Args:
        name: the shard's name, for errors.
        factory: ``module:Class``, or any callable in a module.
        options: its keyword arguments.

    Raises:
        ShardError: no such module or class, options that do not fit, the factory failed, or what it gave is not a
            shard with data.
    """
    where = f"shard {name!r}, factory {factory!r}"
    build = _find(factory, where)
    _check_options(build, options, where)
    try:
        shard = build(**options)
    except Exception as error:
        text = f"{where}: failed with {type(error).__name__}: {error}"
        raise ShardError(text, error_class=type(error).__name__) from error
    _check_shard(shard, where)
    return shard  # type: ignore[no-any-return]  # checked just above


def check_shapes(
    name: str, shard: Shard, sample_shape: Sequence[int] | None, target_shape: Sequence[int] | None
) -> None:
    """Check a shard against the shapes an experiment takes; None is not checked.

    Raises:
        ShardError: a shape differs; the text says got and expected.
    """
    for what, got, expected in (
        ("samples", shard.sample_shape, sample_shape),
        ("targets", shard.target_shape, target_shape),
    ):
        if expected is not None and tuple(got) != tuple(expected):
            raise ShardError(
                f"shard {name!r} gives {what} of shape {tuple(got)}, the experiment takes {tuple(expected)}",
                error_class="WrongShapeError",
            )


def _find(factory: str, where: str) -> Callable[..., Any]:
    module_name, colon, attribute = factory.partition(":")
    if not colon or not module_name or not attribute.isidentifier():
        raise ShardError(f"{where}: a factory is written module:Class, such as 'federation.data.tables:CsvShard'")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or module_name
        raise ShardError(
            f"{where}: no module named {missing!r}; install it in the trainer's interpreter or add its folder to "
            "python_path in envoy.toml",
            error_class="ModuleNotFoundError",
        ) from error
    except Exception as error:
        text = f"{where}: importing {module_name!r} failed with {type(error).__name__}: {error}"
        raise ShardError(text, error_class=type(error).__name__) from error
    found = getattr(module, attribute, None)
    if not callable(found):
        raise ShardError(
            f"{where}: module {module_name!r} has no class {attribute!r}; it has {_offered(module)}",
            error_class="AttributeError",
        )
    return found  # type: ignore[no-any-return]  # callable, checked


def _offered(module: object) -> str:
    names = [name for name, value in vars(module).items() if inspect.isclass(value) and not name.startswith("_")]
    return ", ".join(sorted(names)[:10]) or "no class at all"


def _check_options(build: Callable[..., Any], options: Mapping[str, Any], where: str) -> None:
    try:
        signature = inspect.signature(build)
    except (TypeError, ValueError):  # some built-ins do not tell; calling them will
        return
    try:
        signature.bind(**options)
    except TypeError as error:
        raise ShardError(
            f"{where}: options do not fit: {error}; got {sorted(options)}, it takes {signature}",
            error_class="TypeError",
        ) from error


def _check_shard(shard: object, where: str) -> None:
    for field in ("train", "validation", "sample_shape", "target_shape", "description"):
        if not hasattr(shard, field):
            raise ShardError(f"{where}: gave a {type(shard).__name__} without {field!r}; see federation.data.Shard")
    for part in ("train", "validation"):
        data = getattr(shard, part)
        try:
            count = count_examples(data)
        except TypeError as error:
            raise ShardError(f"{where}: {part} is neither a pair of arrays nor a dataset with a length") from error
        if count == 0:
            raise ShardError(
                f"{where}: {part} is empty; a shard needs at least one example to train and one to validate on",
                error_class="EmptyShardError",
            )
        if is_pair(data) and len(data[1]) != count:
            raise ShardError(
                f"{where}: {part} has {count} samples and {len(data[1])} targets; give one target for each sample",
                error_class="WrongShapeError",
            )
    for field in ("sample_shape", "target_shape"):
        shape = getattr(shard, field)
        if not isinstance(shape, tuple) or not all(isinstance(size, int) and size >= 0 for size in shape):
            raise ShardError(f"{where}: {field} is {shape!r}, expected a tuple of sizes such as (30,)")
    description = shard.description  # type: ignore[attr-defined]  # looked up above
    if not isinstance(description, str):
        raise ShardError(f"{where}: description is a {type(description).__name__}, expected one line of text")
    _check_first(shard, where)


def _check_first(shard: Any, where: str) -> None:
    """Look at one example: a declared shape that is not the data's would fail much later and far away."""
    for part in ("train", "validation"):
        data = getattr(shard, part)
        try:
            example = (data[0][0], data[1][0]) if isinstance(data, tuple) else data[0]
        except Exception as error:
            text = f"{where}: reading the first example of {part} failed with {type(error).__name__}: {error}"
            raise ShardError(text, error_class=type(error).__name__) from error
        if not isinstance(example, tuple | list) or len(example) != 2:
            raise ShardError(
                f"{where}: an example of {part} is a {type(example).__name__}, expected a pair: sample and target",
                error_class="WrongShapeError",
            )
        sample, target = example
        for what, value, shape in (("sample", sample, shard.sample_shape), ("target", target, shard.target_shape)):
            got = tuple(getattr(value, "shape", ()))
            if shape and not hasattr(value, "shape"):
                raise ShardError(
                    f"{where}: a {what} of {part} is a {type(value).__name__}, expected an array of shape {shape}",
                    error_class="WrongShapeError",
                )
            if got != shape:
                raise ShardError(
                    f"{where}: a {what} of {part} has shape {got}, but {what}_shape says {shape}",
                    error_class="WrongShapeError",
                )

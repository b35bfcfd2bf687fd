"""How a codec is found by its specification: ``identity``, ``rand_k:0.01``, ``qsgd:16``, ``powersgd:4``.

Further codecs are plugins the operator installed, in the entry-point group ``federation.codecs``: an entry's object is
called with the list of texts after the colon, split at commas, and returns a `Codec`. No code comes from the wire.
"""

from __future__ import annotations

import difflib
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from federation.errors import ConfigurationError, PlanError
from federation.plan.plugins import Catalogue

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from federation.compression.codec import Codec

ENTRY_POINT_GROUP = "federation.codecs"

BUILT_IN: Catalogue[Callable[[Sequence[str]], Codec]] = Catalogue(
    "federation.compression",
    {
        "identity": "identity:Identity.of",
        "bernoulli": "bernoulli:Bernoulli.of",
        "rand_k": "rand_k:RandK.of",
        "top_k": "top_k:TopK.of",
        "natural": "natural:Natural.of",
        "dithering": "dithering:Dithering.of",
        "qsgd": "dithering:Qsgd.of",
        "terngrad": "dithering:TernGrad.of",
        "natural_dithering": "natural_dithering:NaturalDithering.of",
        "dgc": "dgc:Dgc.of",
        "stc": "stc:Stc.of",
        "eden": "eden:Eden.of",
        "drive": "eden:Eden.drive",
        "float16": "casts:Half.of",
        "bfloat16": "casts:Brain.of",
        "int8": "int8:Int8.of",
        "powersgd": "powersgd:PowerSgd.of",
    },
)


def codec_names() -> list[str]:
    """Return the names a plan may use here: ours and those of installed plugins."""
    return sorted({*BUILT_IN, *(entry.name for entry in entry_points(group=ENTRY_POINT_GROUP))})


def load_codec(spec: str) -> Codec:
    """Return the codec of a specification. Our own names cannot be taken by a plugin.

    Raises:
        PlanError: there is no such codec (the text names the nearest), or its arguments are not right.
        ConfigurationError: a plugin's entry point cannot be loaded.
    """
    name, colon, rest = spec.partition(":")
    arguments = rest.split(",") if colon else []
    factory = BUILT_IN.get(name) or _plugin(name)
    if factory is None:
        names = codec_names()
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise PlanError(f"there is no codec {name[:80]!r} here, only {', '.join(names)}{hint}")
    try:
        return factory(arguments)
    except ValueError as error:
        raise PlanError(f"compression {spec[:80]!r}: {error}") from error


def _plugin(name: str) -> Callable[[Sequence[str]], Codec] | None:
    for entry in entry_points(group=ENTRY_POINT_GROUP, name=name):
        try:
            factory: Callable[[Sequence[str]], Codec] = entry.load()
        except Exception as error:
            raise ConfigurationError(f"codec {name!r} ({entry.value}) cannot be loaded: {error}") from error
        return factory
    return None

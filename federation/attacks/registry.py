"""How an attack is found by its specification: ``sign_flip``, ``alie:1.5``, ``ipm:opt``, ``backdoor:3,replace``."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

from federation.attacks.alie import Alie
from federation.attacks.backdoor import Backdoor
from federation.attacks.free_rider import FreeRider
from federation.attacks.gaussian import Gaussian
from federation.attacks.ipm import Ipm
from federation.attacks.label_flip import LabelFlip
from federation.attacks.mimic import Mimic
from federation.attacks.not_finite import NotFinite
from federation.attacks.scaling import Scaling
from federation.attacks.sign_flip import SignFlip
from federation.errors import PlanError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from federation.attacks.attack import Attack

BUILT_IN: dict[str, Callable[[Sequence[str]], Attack]] = {
    "sign_flip": SignFlip.of,
    "scaling": Scaling.of,
    "gaussian": Gaussian.of,
    "label_flip": LabelFlip.of,
    "alie": Alie.of,
    "ipm": Ipm.of,
    "mimic": Mimic.of,
    "backdoor": Backdoor.of,
    "infinity": NotFinite.infinity,
    "nan": NotFinite.nan,
    "free_rider": FreeRider.of,
}
"""Every attack by name, in the order of the documentation."""


def load_attack(spec: str) -> Attack:
    """Return the attack of a specification.

    Raises:
        PlanError: there is no such attack (the text names the nearest), or its arguments are not right.
    """
    name, colon, rest = spec.partition(":")
    factory = BUILT_IN.get(name)
    if factory is None:
        near = difflib.get_close_matches(name, BUILT_IN, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise PlanError(f"there is no attack {name[:80]!r}, only {', '.join(BUILT_IN)}{hint}")
    try:
        return factory(rest.split(",") if colon else [])
    except ValueError as error:
        raise PlanError(f"attack {spec[:80]!r}: {error}") from error

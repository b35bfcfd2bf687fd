"""What a worker is sent that shares no memory with this process: premises as bytes.

Rules, in order:

1. An experiment that came from a folder is imported from it anew: its functions may be of any kind, and its modules
   have names that only the process knows that imported them. What else is sent may be of its classes, so the module
   gets there the names it has here.
2. An experiment that did not come from a folder is pickled, and what it is made of must be importable.
3. Sent are the data of every site: any worker may serve any site.
"""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from typing import TYPE_CHECKING

from federation.errors import PlanError
from federation.simulation.bench import Premises
from federation.simulation.devices import placed
from federation.training.importing import load_experiment, names_of

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Luggage:
    """Premises, packed.

    Attributes:
        source: folder of the experiment; None: the experiment is in `content`.
        names: under which its module is known where `content` was made.
        content: the rest, pickled.
    """

    source: Path | None
    names: tuple[str, ...]
    content: bytes


def pack(premises: Premises, source: Path | None) -> Luggage:
    """Pack premises.

    Args:
        premises: as the workers shall have them.
        source: folder the experiment came from, if it came from one.

    Raises:
        PlanError: something in them cannot be pickled; the text says what to do instead.
    """
    content = {
        "experiment": None if source is not None else premises.experiment,
        "spec": premises.spec,
        "base": premises.base,
        "shards": dict(premises.shards),
        "state": premises.state,
        "is_shared": premises.is_shared,
        "device": premises.device,
    }
    try:
        data = pickle.dumps(content, protocol=pickle.HIGHEST_PROTOCOL)
    except Exception as error:  # whatever the author's classes raise
        what = "the experiment, or the data it names," if source is None else "the data"
        raise PlanError(
            f"workers > 1 are processes of their own here, and {what} cannot be sent to them: {error}; give an "
            "experiment folder and data of importable classes, or use one worker"
        ) from error
    return Luggage(source=source, names=() if source is None else names_of(source), content=data)


def unpack(luggage: Luggage) -> Premises:
    """Unpack premises, in the worker.

    Raises:
        PlanError: the experiment cannot be imported.
        Exception: something cannot be unpickled here.
    """
    experiment = None if luggage.source is None else load_experiment(luggage.source, also_as=luggage.names)
    content = pickle.loads(luggage.content)  # noqa: S301 - made by the process that started this one
    if experiment is not None:
        content["experiment"] = placed(experiment, content["device"], is_asked=False)
    return Premises(**content)

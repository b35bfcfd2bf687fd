"""What a worker is sent that shares no memory with this process: premises as bytes.

Rules, in order:

1. An experiment that came from a folder is imported from it anew: its functions may be of any kind, and its modules
   have names that only the process knows that imported them. What else is sent may be of its classes, so the module
   gets there the names it has here.
2. An experiment that did not come from a folder is pickled, and what it is made of must be importable.
3. Sent are the data of every site: any worker may serve any site.
4. Where the worker may be on another machine the folder itself is sent, as it would be submitted.
"""

from __future__ import annotations

import io
import pickle
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from federation.bundle import packing
from federation.errors import PlanError
from federation.simulation.bench import Premises
from federation.simulation.devices import placed
from federation.training.importing import load_experiment, names_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import ExitStack


@dataclass(frozen=True, slots=True, kw_only=True)
class Luggage:
    """Premises, packed.

    Attributes:
        source: folder of the experiment, or an archive of it; None: the experiment is in `content`.
        names: under which its module is known where `content` was made.
        content: the rest, pickled.
    """

    source: Path | bytes | None
    names: tuple[str, ...]
    content: bytes


def pack(
    premises: Premises,
    source: Path | None,
    *,
    carries_folder: bool = False,
    dumps: Callable[[Any], bytes] = pickle.dumps,
) -> Luggage:
    """Pack premises.

    Args:
        premises: as the workers shall have them.
        source: folder the experiment came from, if it came from one.
        carries_folder: rule 4.
        dumps: pickles; what it makes is read by ``pickle.loads``.

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
        data = dumps(content)
    except Exception as error:  # whatever the author's classes raise
        what = "the experiment, or the data it names," if source is None else "the data"
        raise PlanError(
            f"workers > 1 are processes of their own here, and {what} cannot be sent to them: {error}; give an "
            "experiment folder and data of importable classes, or use one worker"
        ) from error
    names = () if source is None else names_of(source)
    return Luggage(source=_archive(source) if source and carries_folder else source, names=names, content=data)


def unpack(luggage: Luggage, stack: ExitStack) -> Premises:
    """Unpack premises, in the worker.

    Args:
        luggage: as sent.
        stack: closed when the worker ends; a folder that was sent is there until then.

    Raises:
        PlanError: the experiment cannot be imported.
        Exception: something cannot be unpickled here.
    """
    source = luggage.source
    if isinstance(source, bytes):
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="federation-experiment-"))
        with zipfile.ZipFile(io.BytesIO(source)) as archive:
            archive.extractall(folder)
        source = Path(folder)
    experiment = None if source is None else load_experiment(source, also_as=luggage.names)
    content = pickle.loads(luggage.content)  # noqa: S301 - made by the process that started this one
    if experiment is not None:
        content["experiment"] = placed(experiment, content["device"], is_asked=False)
    return Premises(**content)


def _archive(folder: Path) -> bytes:
    with tempfile.TemporaryDirectory(prefix="federation-luggage-") as temporary:
        archive = Path(temporary) / "experiment.zip"
        packing.pack(folder, archive)
        return archive.read_bytes()

"""From the model a site holds and a step to the next one, file to file, in the folder shared with the trainer."""

from __future__ import annotations

import contextlib
import logging
import os
from typing import TYPE_CHECKING

from federation.collaborator import exchange as files
from federation.errors import FederationError
from federation.storage.disk import pread_into
from federation.storage.flat import FlatFile, FlatWriter
from federation.storage.steps import apply_step

if TYPE_CHECKING:
    from pathlib import Path

    from federation.names import Digest
    from federation.plan import ExperimentSpec
    from federation.storage.disk import Buffer

_log = logging.getLogger(__name__)


def make_model(
    path: Path, *, spec: ExperimentSpec, start: Path, change: Path, change_bytes: int, buffers: Path | None
) -> Digest | None:
    """Write the model that a step leads to into `path`, and return its digest; None if there was no making it. Blocks.

    The trainer may have written into any of the files since they were verified: what comes out is believed for its
    digest only. A disk that refuses will refuse the whole model too, and be heard of then.

    Args:
        path: slot to write.
        spec: the signed spec.
        start: slot of the model that the step is added to.
        change: the step.
        change_bytes: its size.
        buffers: values of the buffers; None if the model has none.
    """
    schema = spec.schema_.federated
    with contextlib.ExitStack() as stack:

        def keep(descriptor: int) -> int:
            stack.callback(os.close, descriptor)
            return descriptor

        try:
            held = FlatFile(keep(files.open_result(start, schema.nbytes)), schema, start)
            step = _Bytes(keep(files.open_result(change, change_bytes)), change_bytes, change)
            values = None
            if buffers is not None:
                size = spec.schema_.buffers.nbytes
                values = _Bytes(keep(files.open_result(buffers, size)), size, buffers)
            return apply_step(
                held=held,
                step=step,
                buffers=values,
                downlink=spec.plan.downlink,
                writer=FlatWriter(keep(files.open_for_write(path, schema.nbytes)), schema, path),
            )
        except (FederationError, ValueError) as error:
            _log.warning("a step cannot be applied: %s", error)
            return None


class _Bytes:
    """An open file as `Readable`."""

    def __init__(self, descriptor: int, nbytes: int, path: Path) -> None:
        self.nbytes = nbytes
        self._descriptor = descriptor
        self._path = path

    def pread_into(self, offset: int, view: Buffer) -> None:
        pread_into(self._descriptor, view, offset, self._path)

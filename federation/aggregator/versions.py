"""The models that sites train from where rounds overlap: the present version, and older ones while they are needed.

Version r is what sites asked in round r start from: the model committed in round r − 1, with all that is sent with it.
Rules:

1. A version is linked into ``checkpoints/versions/`` before the first site is asked with it, so a commit leaves its
   files alone and a restart finds them. It costs disk only if it outlives its round.
2. It is offered, to be pulled, while a site trains from it, and its files stay while an update that starts from it
   may still need them. Then its offers are retired; its files go after the journal line that no longer names it.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from federation.aggregator.broadcast import Offer, Offers, make_offer
from federation.names import PayloadName, RoundNumber
from federation.storage.disk import sync_folder, translated
from federation.storage.safetensors_files import ModelFile
from federation.wire.payloads import MODEL, OPTIMIZER

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from pathlib import Path

    from federation.names import Digest
    from federation.wire.payloads import Payload


class Versions:
    """The versions of one experiment. What blocks is called in the thread that has the disk, the rest in the loop.

    Args:
        folder: where their files go; made when the first one comes.
        offers: where sites find them.
    """

    def __init__(self, folder: Path, offers: Offers) -> None:
        self._folder = folder
        self._offers = offers
        self._versions: dict[RoundNumber, list[Offer]] = {}

    def __contains__(self, number: RoundNumber) -> bool:
        """Tell whether a version is on offer."""
        return number in self._versions

    def offers(self, number: RoundNumber) -> list[Offer]:
        """Return the payloads of a version, the model first.

        Raises:
            KeyError: it is not on offer.
        """
        return self._versions[number]

    def digest(self, number: RoundNumber) -> Digest | None:
        """Return the digest of a version's model; None if it is not on offer."""
        found = self._versions.get(number)
        return found[0].payload.digest if found else None

    def model_path(self, number: RoundNumber) -> Path:
        """Return the file of a version's model."""
        return self._path(number, MODEL)

    def add(self, number: RoundNumber, offers: list[Offer]) -> None:
        """Let a version be found."""
        self._versions[number] = [self._offers.add(offer) for offer in offers]

    def retire(self, kept: Collection[RoundNumber]) -> None:
        """Let all other versions be found no longer."""
        for number in [number for number in self._versions if number not in kept]:
            for offer in self._versions.pop(number):
                self._offers.retire(offer)

    # --- what blocks

    def link(self, number: RoundNumber, files: Sequence[tuple[Payload, Path]]) -> list[Offer]:
        """Make a version of the present model's files, and return its offers.

        Args:
            number: the version.
            files: each payload, with its digest, and its file; the model first.

        Raises:
            StorageError: the disk failed.
        """
        with translated(self._folder):
            self._folder.mkdir(mode=0o700, exist_ok=True)
        for payload, source in files:
            path = self._path(number, payload.name)
            with translated(path):
                path.unlink(missing_ok=True)  # of a process that was killed before anybody was asked
                os.link(source, path)
        sync_folder(self._folder)
        return [self._open(number, payload.name, payload.digest) for payload, _ in files]

    def find(self, number: RoundNumber, names: Collection[PayloadName]) -> list[Offer]:
        """Return the offers of a version that an earlier process made; none if it is not all there.

        Raises:
            StorageError: the disk failed, or a file is damaged.
        """
        there = [name for name in names if self._path(number, name).exists()]
        # The first version has no optimizer state.
        is_whole = all(name in there or name == OPTIMIZER for name in names)
        return [self._open(number, name) for name in there] if is_whole else []

    def unlink(self, kept: Collection[RoundNumber]) -> None:
        """Remove the files of all other versions.

        Raises:
            StorageError: the disk failed.
        """
        if not self._folder.exists():
            return
        with translated(self._folder):
            for path in self._folder.iterdir():
                if RoundNumber(int(path.name.partition("-")[0])) not in kept:
                    path.unlink()

    def _open(self, number: RoundNumber, name: PayloadName, digest: Digest | None = None) -> Offer:
        file = ModelFile.open(self._path(number, name))
        return make_offer(name, file, digest or file.digest())

    def _path(self, number: RoundNumber, name: PayloadName) -> Path:
        return self._folder / f"{number:08d}-{name}.safetensors"

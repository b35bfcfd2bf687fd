"""Shards from files people have: a CSV table, or a folder (or file) of NPZ arrays."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from federation.data.shard import ArrayShard

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from federation.tensors.buffers import Array


class CsvShard(ArrayShard):
    """A CSV table with a header line: one example per row, one column is the target, the others are features.

    Args:
        path: the file, UTF-8.
        target: name of the target column.
        features: names of the feature columns, in the order the model takes them. None: all others, as they stand.
        classes: the target's texts in the order of their class numbers, such as ``["benign", "malignant"]``. All sites
            must say the same. None: targets are numbers.
        scale: lowest and highest published value of a feature; it is mapped to [0, 1] by them. All sites must say the
            same; a site must not scale by its own data, or equal numbers would mean different things.
        validation: share of rows kept for evaluation, more than 0 and less than 1.
        seed: decides which rows.
        description: one line; it leaves the site.

    Raises:
        ValueError: names the column, or the line and column, that is wrong.
        OSError: the file cannot be read.
    """

    def __init__(
        self,
        path: str | Path,
        target: str,
        *,
        features: Sequence[str] | None = None,
        classes: Sequence[str] | None = None,
        scale: Mapping[str, tuple[float, float]] | None = None,
        validation: float = 0.2,
        seed: int = 0,
        description: str = "",
    ) -> None:
        header, rows = _read_csv(Path(path))
        wanted = [name for name in header if name != target] if features is None else list(features)
        for name in [target, *wanted]:
            if name not in header:
                raise ValueError(f"{path} has no column {name!r}; it has {', '.join(header)}")
        samples = np.stack([_numbers(path, header, rows, name) for name in wanted], axis=1).astype(np.float32)
        for name, (low, high) in (scale or {}).items():
            if name not in wanted or not high > low:
                raise ValueError(f"scale of {name!r} must name a feature and go from a lower to a higher value")
            column = wanted.index(name)
            samples[:, column] = (samples[:, column] - low) / (high - low)
        if classes is None:
            targets = _numbers(path, header, rows, target).astype(np.float32)
        else:
            targets = _class_numbers(path, header, rows, target, classes)
        train, held = split((samples, targets), validation, seed)
        super().__init__(train=train, validation=held, description=description or f"table {Path(path).name}")


class NpzShard(ArrayShard):
    """Arrays ``x`` and ``y`` from one ``.npz`` file, or from all of a folder, joined in name order.

    Args:
        path: file or folder.
        samples: name of the array of samples.
        targets: name of the array of targets.
        validation: share kept for evaluation, more than 0 and less than 1.
        seed: decides which examples.
        description: one line; it leaves the site.

    Raises:
        ValueError: no file, an array is missing, or shapes do not fit.
        OSError: a file cannot be read.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        samples: str = "x",
        targets: str = "y",
        validation: float = 0.2,
        seed: int = 0,
        description: str = "",
    ) -> None:
        folder = Path(path)
        files = sorted(folder.glob("*.npz")) if folder.is_dir() else [folder]
        if not files:
            raise ValueError(f"{folder} holds no .npz file")
        parts: list[tuple[Array, Array]] = []
        for file in files:
            with np.load(file, allow_pickle=False) as arrays:
                for name in (samples, targets):
                    if name not in arrays:
                        raise ValueError(f"{file} has no array {name!r}; it has {', '.join(arrays.files)}")
                parts.append((arrays[samples], arrays[targets]))
        joined = (np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts]))
        train, held = split(joined, validation, seed)
        super().__init__(train=train, validation=held, description=description or f"arrays {folder.name}")


def split(data: tuple[Array, Array], validation: float, seed: int) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """Divide examples at random into those to train and those to validate on; at least one each.

    Raises:
        ValueError: fewer than two examples, or `validation` is not between 0 and 1.
    """
    samples, targets = data
    if not 0 < validation < 1:
        raise ValueError(f"validation is a share between 0 and 1, got {validation}")
    if len(samples) != len(targets):
        raise ValueError(f"there are {len(samples)} samples but {len(targets)} targets")
    if len(samples) < 2:
        raise ValueError(f"{len(samples)} examples cannot be divided; a shard needs at least two")
    order = np.random.default_rng(seed).permutation(len(samples))
    held = min(max(round(len(samples) * validation), 1), len(samples) - 1)
    first, rest = np.sort(order[:held]), np.sort(order[held:])
    return (samples[rest], targets[rest]), (samples[first], targets[first])


def _read_csv(path: Path) -> tuple[list[str], list[list[str]]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        table = [row for row in csv.reader(file) if row]
    if len(table) < 2:
        raise ValueError(f"{path} has no rows below a header line")
    header = [name.strip() for name in table[0]]
    for number, row in enumerate(table[1:], start=2):
        if len(row) != len(header):
            raise ValueError(f"{path}, row {number}: {len(row)} fields, the header has {len(header)}")
    return header, table[1:]


def _numbers(path: str | Path, header: list[str], rows: list[list[str]], name: str) -> Array:
    column = header.index(name)
    values = np.empty(len(rows), dtype=np.float64)
    for number, row in enumerate(rows):
        try:
            values[number] = float(row[column])
        except ValueError as error:
            # The value itself may be a patient's: it is not repeated.
            raise ValueError(f"{path}, row {number + 2}, column {name!r}: not a number") from error
    if not np.isfinite(values).all():
        raise ValueError(f"{path}, column {name!r}: not all numbers are finite")
    return values


def _class_numbers(
    path: str | Path, header: list[str], rows: list[list[str]], name: str, classes: Sequence[str]
) -> Array:
    column = header.index(name)
    numbers = {text: number for number, text in enumerate(classes)}
    for number, row in enumerate(rows):
        if row[column].strip() not in numbers:
            raise ValueError(f"{path}, row {number + 2}, column {name!r}: not one of {', '.join(classes)}")
    return np.array([numbers[row[column].strip()] for row in rows], dtype=np.int64)

"""Where a torch model computes. It lives on the CPU, where its tensors are seen as arrays. Imports torch.

A device other than the CPU is visited: tensors are copied there and back into the very CPU memory they came from, so
that whoever holds a view of them keeps a live one. A visit within a visit is one visit.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    import torch


class Placement:
    """A context manager inside which the model is on the device of its task.

    Args:
        model: on the CPU.
        device: where it computes; ``"cpu"`` makes this do nothing.
    """

    def __init__(self, model: torch.nn.Module, device: str) -> None:
        self._model = model
        self._device = device
        self._is_away = device != "cpu"
        self._depth = 0
        self._homes: dict[str, torch.Tensor] = {}

    @property
    def is_elsewhere(self) -> bool:
        """Whether the device is not the CPU."""
        return self._is_away

    @contextmanager
    def left(self) -> Iterator[None]:
        """Be on the CPU for the block, in the middle of a visit."""
        depth, self._depth = self._depth, 1
        self.__exit__(None, None, None)
        try:
            yield
        finally:
            self.__enter__()
            self._depth = depth

    def __enter__(self) -> Placement:
        if self._is_away:
            self._depth += 1
            if self._depth == 1:
                self._homes = {name: tensor.data for name, tensor in self._tensors()}
                self._model.to(self._device)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._is_away:
            self._depth -= 1
            if self._depth == 0:
                self._come_home()

    def _come_home(self) -> None:
        for name, tensor in self._tensors():
            home = self._homes[name]
            home.copy_(tensor.data)
            tensor.grad = None  # of the device; a tensor and its gradient lie in one place
            tensor.data = home
        self._homes = {}

    def _tensors(self) -> list[tuple[str, torch.Tensor]]:
        return [*self._model.named_parameters(), *self._model.named_buffers()]

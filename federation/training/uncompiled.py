"""torch's optimizers without torch's compiler, which takes as long to import as torch itself. Imports torch.

An optimizer of torch's imports the compiler as it is made and as it steps, to be left out of what is compiled; nothing
is compiled here. What is made here is torch's class, with its checks, its state and its arithmetic, so the result is
the same to the bit; what lies around its methods is left out: the compiler, the hooks and the profiler's record.
"""

from __future__ import annotations

import functools
import inspect
from typing import Any

import torch


@functools.cache
def without_compiler(kind: type[torch.optim.Optimizer]) -> type[torch.optim.Optimizer]:
    """Return a class that moves parameters as `kind` does.

    Args:
        kind: an optimizer of torch's.
    """

    class Uncompiled(kind):  # type: ignore[misc, valid-type]
        """As its base; cannot be pickled, as no optimizer ever is."""

        add_param_group = inspect.unwrap(kind.add_param_group)
        zero_grad = inspect.unwrap(kind.zero_grad)
        step: Any = torch.no_grad()(inspect.unwrap(kind.step))

        def _patch_step_function(self) -> None:
            """Put nothing around `step`; torch does when an optimizer is made."""
            self._zero_grad_profile_name = f"Optimizer.zero_grad#{kind.__name__}.zero_grad"

    Uncompiled.__name__ = Uncompiled.__qualname__ = kind.__name__
    return Uncompiled

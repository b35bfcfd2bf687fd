from __future__ import annotations

import numpy as np

from federation.names import SiteName
from federation.training.context import RoundContext


def _context() -> RoundContext:
    return RoundContext(number=3, site=SiteName("north"), seed=5, epochs=1, steps=None, learning_rate=0.1, threads=1)


def test_streams_made_ahead_are_those_made_when_asked_for() -> None:
    ahead, plain = _context(), _context()
    ahead.foresee()

    assert ahead.derive_seed("globals") == plain.derive_seed("globals")
    assert ahead.derive_seed("other") == plain.derive_seed("other")
    assert ahead.rng("shuffle").integers(1 << 40) == plain.rng("shuffle").integers(1 << 40)


def test_each_generator_of_a_purpose_is_fresh_also_after_one_was_made_ahead() -> None:
    context = _context()
    context.foresee()

    first, second = context.rng("shuffle"), context.rng("shuffle")

    assert first is not second
    assert first.integers(1 << 40) == second.integers(1 << 40)


def test_a_generator_draws_what_numpy_makes_of_the_seed() -> None:
    context = _context()
    context.foresee()

    for purpose in ("shuffle", "subset", ""):
        expected = np.random.default_rng(context.derive_seed(purpose))
        assert context.rng(purpose).bit_generator.state == expected.bit_generator.state

from __future__ import annotations

import pickle

from federation.names import PayloadName
from federation.training.results import Trained


def test_what_training_gave_is_the_same_after_it_was_sent() -> None:
    trained = Trained(
        examples=15,
        steps=2,
        metrics={"loss": 0.5},
        seconds=0.25,
        payload_bytes={PayloadName("delta"): 40},
        oracle_calls=30,
    )

    assert pickle.loads(pickle.dumps(trained)) == trained  # noqa: S301 - our own bytes

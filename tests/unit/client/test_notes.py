"""Notes on plans that are sound: on standard error, and only where there is something to say."""

from __future__ import annotations

import pytest

from federation.client.notes import print_notes
from federation.plan import ExperimentSpec, Plan, tensor_rows
from federation.tensors import DType, TensorSchema, TensorSpec

SCHEMA = TensorSchema.of([TensorSpec(name="weight", dtype=DType.FLOAT32, shape=(3,))])


def spec(**plan):
    return ExperimentSpec(name="trial", shard="tabular", plan=Plan(**plan), tensors=tensor_rows(SCHEMA))


@pytest.mark.parametrize(
    ("plan", "said"),
    [
        ({"sites": 4, "rule": "median"}, "1 hostile or broken can end the experiment"),
        ({"sites": 5, "rule": "median", "byzantine": 2, "quorum": 5}, "1 hostile or broken can end the experiment"),
        ({"sites": 5, "rule": "median", "byzantine": 1, "quorum": 4}, ""),
        ({"sites": 4}, ""),
        ({"sites": 4, "rule": "median", "algorithm": "fedbuff", "options": {"buffer": 2}}, ""),
    ],
)
def test_a_plan_that_one_refused_update_can_end_is_noted(capsys, plan, said) -> None:
    print_notes(spec(**plan))
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("federation: note: ") is bool(said) and said in printed.err

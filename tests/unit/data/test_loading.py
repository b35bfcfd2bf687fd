from __future__ import annotations

import sys

import numpy as np
import pytest

from federation.data import ArrayShard, ShardError, check_shapes, load_shard

CODE = """
import numpy as np
from federation.data import ArrayShard

class Good(ArrayShard):
    def __init__(self, rows, width=3):
        part = (np.zeros((rows, width), np.float32), np.zeros(rows, np.int64))
        super().__init__(train=part, validation=part, description="zeros")

class Strict:
    def __init__(self, path):
        raise FileNotFoundError(path)

class _Base:
    train = validation = (np.zeros((2, 3)), np.zeros(2))
    sample_shape, target_shape, description = (3,), (), "d"

class NoTarget:
    train = validation = (np.zeros((2, 3)), np.zeros(2))
    sample_shape, description = (3,), "d"

class Empty(_Base):
    validation = (np.zeros((0, 3)), np.zeros(0))

class WrongShape(_Base):
    sample_shape = (4,)

class TooFewTargets(_Base):
    train = (np.zeros((2, 3)), np.zeros(1))

class ListShape(_Base):
    sample_shape = [3]

class NoLength(_Base):
    train = iter(())

class NoText(_Base):
    description = None

class Broken(_Base):
    class train:
        def __len__(self): return 3
        def __getitem__(self, index): raise KeyError("patients")
    train = train()

class Named(_Base):
    class train:
        def __len__(self): return 3
        def __getitem__(self, index): return {"image": np.zeros(3), "label": 1}
    train = train()

class Lists(_Base):
    train = ([[1.0, 2.0, 3.0]], [1])

number = 3
"""


@pytest.fixture(autouse=True)
def module(tmp_path, monkeypatch):
    (tmp_path / "ward.py").write_text(CODE)
    (tmp_path / "torn.py").write_text("1 / 0")
    (tmp_path / "needs.py").write_text("import surely_not_installed")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    for name in ("ward", "torn", "needs"):
        sys.modules.pop(name, None)


def test_a_factory_is_called_with_its_options() -> None:
    shard = load_shard("patients", "ward:Good", {"rows": 4, "width": 2})
    assert (len(shard.train), shard.sample_shape, shard.description) == (2, (2,), "zeros")


@pytest.mark.parametrize(
    ("factory", "options", "error_class", "says"),
    [
        ("ward", {}, "ShardError", "module:Class"),
        (":Good", {}, "ShardError", "module:Class"),
        ("ward:os.system", {}, "ShardError", "module:Class"),
        ("surely_not_there:Good", {}, "ModuleNotFoundError", "no module named 'surely_not_there'"),
        ("needs:Good", {}, "ModuleNotFoundError", "no module named 'surely_not_installed'"),
        ("torn:Good", {}, "ZeroDivisionError", "importing 'torn' failed"),
        ("ward:God", {}, "AttributeError", "it has .*Good"),
        ("ward:number", {}, "AttributeError", "no class 'number'"),
        ("ward:Good", {}, "TypeError", "missing a required argument: 'rows'"),
        ("ward:Good", {"rows": 1, "colour": 2}, "TypeError", "unexpected keyword argument 'colour'"),
        ("ward:Good", {"rows": 0}, "ValueError", "train is empty"),
        ("ward:Strict", {"path": "/p.csv"}, "FileNotFoundError", "/p.csv"),
        ("ward:NoTarget", {}, "ShardError", "without 'target_shape'"),
        ("ward:Empty", {}, "EmptyShardError", "validation is empty"),
        ("ward:WrongShape", {}, "WrongShapeError", r"shape \(3,\), but sample_shape says \(4,\)"),
        ("ward:TooFewTargets", {}, "WrongShapeError", "train has 2 samples and 1 targets"),
        ("ward:ListShape", {}, "ShardError", "expected a tuple"),
        ("ward:NoLength", {}, "ShardError", "neither a pair"),
        ("ward:NoText", {}, "ShardError", "description"),
        ("ward:Broken", {}, "KeyError", "first example of train"),
        ("ward:Named", {}, "WrongShapeError", "an example of train is a dict, expected a pair: sample and target"),
        ("ward:Lists", {}, "WrongShapeError", r"a sample of train is a list, expected an array of shape \(3,\)"),
    ],
)
def test_what_cannot_be_offered_is_an_error_that_names_shard_and_factory(factory, options, error_class, says) -> None:
    with pytest.raises(ShardError, match=says) as caught:
        load_shard("patients", factory, options)
    assert caught.value.error_class == error_class
    assert "'patients'" in str(caught.value)
    assert repr(factory) in str(caught.value)


def test_a_shard_of_another_shape_than_the_experiment_takes_is_refused_with_both() -> None:
    rows = (np.zeros((2, 3)), np.zeros(2))
    shard = ArrayShard(train=rows, validation=rows)
    check_shapes("patients", shard, None, None)
    check_shapes("patients", shard, (3,), ())
    with pytest.raises(ShardError, match=r"'patients' gives samples of shape \(3,\), the experiment takes \(30,\)"):
        check_shapes("patients", shard, (30,), None)
    with pytest.raises(ShardError, match="targets"):
        check_shapes("patients", shard, None, (1,))

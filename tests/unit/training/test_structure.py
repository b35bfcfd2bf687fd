from __future__ import annotations

import gc
import pickle
import weakref

import pytest

from federation.training.modes import train_mode
from federation.training.structure import Structure, Structures

torch = pytest.importorskip("torch")


def _model() -> torch.nn.Sequential:
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2))


def test_a_structure_is_current_until_the_module_holds_something_else() -> None:
    model = _model()
    structure = Structure(model)
    assert structure.is_current()

    model[0].weight = torch.nn.Parameter(torch.zeros(4, 3))
    assert not structure.is_current()


def test_a_structure_notices_what_was_added_where_nothing_was() -> None:
    model = _model()
    structure = Structure(model)

    model[0].register_buffer("extra", torch.zeros(1))
    assert not structure.is_current()


def test_structures_are_found_anew_only_for_a_module_that_changed() -> None:
    model, structures = _model(), Structures()
    first = structures.of(model)
    assert structures.of(model) is first

    model.append(torch.nn.ReLU())
    assert structures.of(model) is not first


def test_structures_keep_no_module_alive() -> None:
    model, structures = _model(), Structures()
    structures.of(model)
    gone = weakref.ref(model)

    del model
    gc.collect()
    assert gone() is None


def test_a_pickled_set_of_structures_begins_empty() -> None:
    model, structures = _model(), Structures()
    structures.of(model)

    assert not pickle.loads(pickle.dumps(structures))._known  # noqa: S301 - our own bytes


def test_modes_are_put_back_after_an_evaluation() -> None:
    model = _model()
    structure = Structure(model)
    train_mode(model, structure)
    model.eval()

    train_mode(model, structure)

    assert all(module.training for module in model.modules())


def test_parts_frozen_since_are_put_into_evaluation_mode() -> None:
    model = _model()
    structure = Structure(model)
    train_mode(model, structure)
    for parameter in model[1].parameters():
        parameter.requires_grad_(False)

    train_mode(model, structure)

    assert not model[1].training
    assert model[2].training


class _Counting(torch.nn.Linear):
    calls = 0

    def train(self, mode: bool = True) -> _Counting:
        self.calls += 1
        super().train(mode)
        return self


def test_a_model_with_its_own_idea_of_training_mode_is_told_each_time() -> None:
    model = _Counting(2, 2)
    structure = Structure(model)

    train_mode(model, structure)
    train_mode(model, structure)

    assert model.calls == 2

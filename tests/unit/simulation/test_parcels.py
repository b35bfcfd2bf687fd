"""How many orders go out together."""

from __future__ import annotations

from federation.names import Attempt, RoundNumber, SiteName
from federation.simulation.bench import EvaluateOrder, TrainOrder
from federation.simulation.parcels import PARCEL_S, Pace

SITES = [SiteName(f"site-{number:02d}") for number in range(16)]
TRAIN = [TrainOrder(site, RoundNumber(1), Attempt(1), 0, slot) for slot, site in enumerate(SITES)]
EVALUATE = [EvaluateOrder(site, RoundNumber(1), 0) for site in SITES]


def sizes(pace: Pace, orders: list[TrainOrder] | list[EvaluateOrder]) -> list[int]:
    return [len(parcel) for parcel in pace.parcels(orders)]


def test_what_evaluating_takes_says_nothing_of_training() -> None:
    pace = Pace(2)
    pace.learn(EVALUATE, 0.001)
    assert sizes(pace, TRAIN) == [1] * 16
    assert sizes(pace, EVALUATE) == [8, 8]


def test_each_kind_goes_by_its_own_last_time() -> None:
    pace = Pace(2)
    pace.learn(TRAIN, 16 * 100 * PARCEL_S)
    pace.learn(EVALUATE, 16 * PARCEL_S / 8)  # a quarter of a parcel's time each, by two workers
    assert sizes(pace, TRAIN) == [1] * 16
    assert sizes(pace, EVALUATE) == [4] * 4


def test_every_order_is_in_one_parcel() -> None:
    pace = Pace(3)
    pace.learn(EVALUATE, 16 * PARCEL_S / 12)
    assert sorted(order.site for parcel in pace.parcels(EVALUATE) for order in parcel) == SITES
    assert not pace.parcels([])

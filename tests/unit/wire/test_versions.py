"""The highest version both speak, or a refusal that says who should upgrade."""

from __future__ import annotations

import pytest

from federation.errors import MalformedMessageError, PeerError
from federation.v1 import tensors_pb2
from federation.wire.versions import PROTOCOL, ProtocolRange, check_chosen, negotiate, range_to_proto


@pytest.mark.parametrize(
    ("ours", "theirs", "chosen"),
    [((1, 1), (1, 1), 1), ((1, 3), (2, 5), 3), ((2, 5), (1, 3), 3), ((1, 9), (4, 4), 4)],
)
def test_the_highest_common_version_is_used(ours: tuple[int, int], theirs: tuple[int, int], chosen: int) -> None:
    message = tensors_pb2.ProtocolRange(lowest=theirs[0], highest=theirs[1])
    assert negotiate(message, ProtocolRange(lowest=ours[0], highest=ours[1])) == chosen


@pytest.mark.parametrize(("theirs", "who"), [((1, 2), "the client"), ((6, 7), "the server")], ids=["older", "newer"])
def test_no_common_version_names_who_should_upgrade_in_words_that_hold_at_both_ends(
    theirs: tuple[int, int], who: str
) -> None:
    message = tensors_pb2.ProtocolRange(lowest=theirs[0], highest=theirs[1], software="9.9.9")
    with pytest.raises(PeerError, match=rf"9\.9\.9.* {theirs[0]} to {theirs[1]}.* 3 to 5; upgrade {who}"):
        negotiate(message, ProtocolRange(lowest=3, highest=5, software="1.0"))


@pytest.mark.parametrize(("lowest", "highest"), [(0, 0), (0, 1), (3, 2)], ids=["unset", "zero", "empty"])
def test_a_range_that_means_nothing_is_refused(lowest: int, highest: int) -> None:
    with pytest.raises(MalformedMessageError, match="protocol range"):
        negotiate(tensors_pb2.ProtocolRange(lowest=lowest, highest=highest))


def test_we_understand_ourselves() -> None:
    assert negotiate(range_to_proto()) == PROTOCOL.highest
    assert check_chosen(PROTOCOL.highest) == PROTOCOL.highest


@pytest.mark.parametrize("version", [0, 99])
def test_a_version_we_did_not_offer_is_refused(version: int) -> None:
    with pytest.raises(PeerError, match="offered were"):
        check_chosen(version)

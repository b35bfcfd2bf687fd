"""Payload descriptors: back as they went, or refused."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from federation.errors import MalformedMessageError
from federation.names import Digest, PayloadName
from federation.wire.payloads import (
    MAX_PAYLOADS,
    Payload,
    payload_from_proto,
    payload_to_proto,
    payloads_from_proto,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from federation.v1 import tensors_pb2

DOWN = Payload(
    name=PayloadName("model"), schema_digest=Digest(b"s" * 32), encoded_bytes=5 << 30, digest=Digest(b"d" * 32)
)
UP = Payload(name=PayloadName("delta"), schema_digest=Digest(b"s" * 32), encoded_bytes=0, codec="topk")


@pytest.mark.parametrize(("payload", "with_digest"), [(DOWN, True), (UP, False)], ids=["down", "up"])
def test_a_payload_comes_back_as_it_went(payload: Payload, with_digest: bool) -> None:
    assert payload_from_proto(payload_to_proto(payload), with_digest=with_digest) == payload


def set_to(**values: object) -> Callable[[tensors_pb2.PayloadDescriptor], None]:
    def spoil(message: tensors_pb2.PayloadDescriptor) -> None:
        for name, value in values.items():
            setattr(message, name, value)

    return spoil


@pytest.mark.parametrize(
    "spoil",
    [
        set_to(name="../model"),
        set_to(name=""),
        set_to(schema_digest=b"short"),
        set_to(digest=b""),
        set_to(digest=b"x" * 33),
        set_to(codec=""),
        set_to(codec="x" * 65),
        set_to(encoded_bytes=2**64 - 1),
    ],
    ids=["name", "no name", "schema digest", "no digest", "digest", "no codec", "codec", "size"],
)
def test_a_payload_that_is_not_sound_is_refused(spoil: Callable[[tensors_pb2.PayloadDescriptor], None]) -> None:
    message = payload_to_proto(DOWN)
    spoil(message)
    with pytest.raises(MalformedMessageError):
        payload_from_proto(message, with_digest=True)


def test_an_upload_may_not_name_its_digest_before_it_is_sent() -> None:
    with pytest.raises(MalformedMessageError, match="at the end"):
        payload_from_proto(payload_to_proto(DOWN), with_digest=False)


def test_two_payloads_of_one_name_are_refused() -> None:
    with pytest.raises(MalformedMessageError, match="share a name"):
        payloads_from_proto([payload_to_proto(DOWN)] * 2, with_digest=True)


def test_too_many_payloads_are_refused() -> None:
    with pytest.raises(MalformedMessageError, match="more than"):
        payloads_from_proto([payload_to_proto(DOWN)] * (MAX_PAYLOADS + 1), with_digest=True)


def test_a_step_says_what_it_is_added_to() -> None:
    step = replace(DOWN, from_digest=Digest(b"f" * 32))
    assert payload_from_proto(payload_to_proto(step), with_digest=True) == step
    message = payload_to_proto(step)
    message.from_digest = b"short"
    with pytest.raises(MalformedMessageError, match="what model is added to"):
        payload_from_proto(message, with_digest=True)

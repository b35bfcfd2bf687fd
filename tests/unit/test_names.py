"""Names and identities: one rule, and nothing that breaks it gets through."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation.errors import IdentityError, InvalidNameError
from federation.names import (
    ExperimentId,
    ExperimentState,
    FederationName,
    Identity,
    Role,
    aggregator_server_name,
    check_name,
    director_server_name,
    experiment_id,
)

NAMES = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", fullmatch=True)
BAD = ["", "-a", "a-", "A", "a_b", "a.b", "a/b", "../a", "a b", "a\n", "ä", "x" * 64, "a\x00", "١"]


@given(NAMES)
def test_every_dns_label_is_a_name(name: str) -> None:
    assert check_name(name, "name") == name


@given(st.text(max_size=70))
def test_what_passes_is_safe_in_paths_and_labels(text: str) -> None:
    try:
        check_name(text, "name")
    except InvalidNameError:
        return
    assert re.fullmatch(r"[a-z0-9-]{1,63}", text, re.ASCII)
    assert not text.startswith("-")


@pytest.mark.parametrize("name", BAD, ids=repr)
def test_anything_else_is_refused_with_what_it_names(name: str) -> None:
    with pytest.raises(InvalidNameError, match="site name"):
        check_name(name, "site name")


def test_a_refused_name_is_shown_shortened() -> None:
    with pytest.raises(InvalidNameError) as caught:
        check_name("x" * 10_000, "site name")
    assert len(str(caught.value)) < 300


@given(NAMES, st.from_regex(r"[a-z0-9]{8}", fullmatch=True))
def test_an_experiment_id_is_a_name_that_begins_with_its_stem_and_ends_with_its_suffix(name: str, suffix: str) -> None:
    identifier = experiment_id(name, suffix)
    assert check_name(identifier, "experiment id") == identifier
    assert identifier.endswith(f"-{suffix}")
    assert name.startswith(identifier.removesuffix(f"-{suffix}"))


@pytest.mark.parametrize("suffix", ["", "short", "toolong12"])
def test_a_suffix_of_another_length_is_a_bad_argument(suffix: str) -> None:
    with pytest.raises(ValueError, match="8 characters"):
        experiment_id("digits", suffix)


def test_an_experiment_name_that_is_none_is_refused() -> None:
    with pytest.raises(InvalidNameError, match="experiment name"):
        experiment_id("a/b", "abcd1234")


@given(NAMES, st.sampled_from(Role), NAMES)
def test_an_identity_is_read_back_from_its_spiffe_id(federation: str, role: Role, name: str) -> None:
    identity = Identity(federation=FederationName(federation), role=role, name=name)
    assert Identity.parse(identity.spiffe) == identity
    assert str(identity) == f"spiffe://{federation}/{role.value}/{name}"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "spiffe://clinic/envoy",
        "spiffe://clinic/envoy/alpha/more",
        "spiffe:/clinic/envoy/alpha",
        "https://clinic/envoy/alpha",
        "SPIFFE://clinic/envoy/alpha",
        "spiffe://clinic/king/alpha",
        "spiffe://clinic/Envoy/alpha",
        "spiffe://clinic/envoy/Alpha",
        "spiffe://clinic/envoy/..",
        "spiffe://clinic/envoy/",
        "spiffe:///envoy/alpha",
        "spiffe://clinic/envoy/alpha\n",
        "spiffe://clinic/envoy/alpha?x",
    ],
    ids=repr,
)
def test_what_is_no_identity_is_refused(text: str) -> None:
    with pytest.raises(IdentityError, match="SPIFFE id"):
        Identity.parse(text)


def test_server_names_are_those_of_the_certificates() -> None:
    assert director_server_name(FederationName("clinic")) == "director.clinic.internal"
    assert (
        aggregator_server_name(FederationName("clinic"), ExperimentId("digits-abcd1234"))
        == "digits-abcd1234.aggregator.clinic.internal"
    )


def test_three_states_are_terminal() -> None:
    terminal = {state for state in ExperimentState if state.is_terminal}
    assert terminal == {ExperimentState.COMPLETED, ExperimentState.FAILED, ExperimentState.CANCELLED}

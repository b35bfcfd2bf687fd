"""Submitting over mutual TLS: what is accepted, what is refused, and that a refusal leaves nothing behind."""

from __future__ import annotations

import hashlib
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from federation.errors import BundleError, ConflictError, FederationError, IdentityError, LimitError, NotFoundError
from federation.names import Digest, Role
from federation.storage.safetensors_files import write_model
from federation.tensors import DType, TensorSchema, TensorSpec
from federation.v1 import director_pb2 as pb

if TYPE_CHECKING:
    from pathlib import Path


def left_behind(world: Any) -> list[str]:
    state: Path = world.settings.state
    return sorted(
        str(path.relative_to(state))
        for folder in ("artifacts", "incoming", "work")
        for path in (state / folder).rglob("*")
        if path.is_file()
    )


async def test_a_submission_is_stored_queued_and_shown_to_its_owner(world: Any, make_package: Any) -> None:
    experiment = await make_package().submit(world)
    shown = await world.experiment(experiment)
    assert experiment.startswith("trial-")
    assert shown.summary.state == pb.EXPERIMENT_STATE_QUEUED
    assert shown.summary.submitted_by == "alice"
    assert [item.name for item in shown.artifacts] == ["initial.safetensors", "spec.json"]
    assert '"rounds":2' in shown.plan_json
    events = await world.watch_until(experiment, lambda event: event.kind == "assignment")
    assert "no envoy offers shards" in events[-1].text


async def test_the_model_comes_back_from_any_offset_and_the_bundle_never(world: Any, make_package: Any) -> None:
    package = make_package()
    experiment = await package.submit(world)
    stub = world.stub(Role.USER, "alice")
    request = pb.DownloadArtifactRequest(experiment=experiment, name="initial.safetensors", offset=10)
    replies = [reply async for reply in stub.server_stream("DownloadArtifact", request)]
    assert replies[0].artifact.digest == hashlib.sha256(package.model).hexdigest()
    assert b"".join(reply.chunk.data for reply in replies[1:]) == package.model[10:]
    request.digest = "00" * 32
    with pytest.raises(ConflictError, match="replaced since"):
        await stub.server_stream("DownloadArtifact", request).read()
    with pytest.raises(NotFoundError, match=r"has no artifact 'bundle\.zip'"):
        request = pb.DownloadArtifactRequest(experiment=experiment, name="bundle.zip")
        await stub.server_stream("DownloadArtifact", request).read()


async def test_another_user_cannot_tell_that_it_exists_and_an_operator_can(world: Any, make_package: Any) -> None:
    experiment = await make_package().submit(world)
    with pytest.raises(NotFoundError, match="no experiment"):
        await world.experiment(experiment, as_user="bob")
    listed = await world.stub(Role.USER, "bob").unary("ListExperiments", pb.ListExperimentsRequest())
    assert not listed.experiments
    listed = await world.stub(Role.OPERATOR, "root").unary("ListExperiments", pb.ListExperimentsRequest())
    assert [item.experiment for item in listed.experiments] == [experiment]


async def test_an_unknown_experiment_is_not_found(world: Any) -> None:
    with pytest.raises(NotFoundError, match="no experiment 'nothing'"):
        await world.experiment("nothing")


async def test_a_changed_model_is_refused_and_leaves_nothing(world: Any, make_package: Any) -> None:
    package = make_package()
    package.model = package.model[:-1] + b"\x01"
    with pytest.raises(BundleError, match="model is not the one that was signed"):
        await package.submit(world)
    assert left_behind(world) == []


async def test_a_changed_bundle_is_refused(world: Any, make_package: Any) -> None:
    package = make_package()
    package.bundle = b"X" + package.bundle[1:]
    with pytest.raises(BundleError, match="bundle is not the one that was signed"):
        await package.submit(world)
    assert left_behind(world) == []


async def test_a_model_with_other_tensors_than_the_plan_is_refused(
    world: Any, make_package: Any, tmp_path: Path
) -> None:
    path = tmp_path / "other.safetensors"
    schema = TensorSchema.of([TensorSpec(name="weight", dtype=DType.FLOAT32, shape=(4,))])
    write_model(path, schema, {"weight": np.zeros(4, np.float32)})
    model = path.read_bytes()
    package = make_package(model_digest=Digest(hashlib.sha256(model).digest()), model_bytes=len(model))
    package.model = model
    with pytest.raises(BundleError, match=r"tensor 'weight' .* shape \(4,\), the signed plan says .* \(3,\)"):
        await package.submit(world)


async def test_a_model_that_is_no_safetensors_file_is_refused(world: Any, make_package: Any) -> None:
    model = b"not a model at all, but long enough"
    package = make_package(model_digest=Digest(hashlib.sha256(model).digest()), model_bytes=len(model))
    package.model = model
    with pytest.raises(BundleError, match="not a valid safetensors file"):
        await package.submit(world)


async def test_an_unsigned_or_wrongly_signed_manifest_is_refused(world: Any, make_package: Any) -> None:
    package = make_package()
    package.header.signature = b""
    with pytest.raises(BundleError, match="not signed"):
        await package.submit(world)
    package = make_package()
    package.header.manifest = package.header.manifest.replace(b'"rounds":2', b'"rounds":9')
    with pytest.raises(BundleError, match="signature does not fit"):
        await package.submit(world)


async def test_the_bundle_of_somebody_else_is_refused(world: Any, make_package: Any) -> None:
    with pytest.raises(IdentityError, match=r"signed as user 'bob', the certificate is of .*alice"):
        await make_package(user="bob").submit(world, user="alice")


async def test_an_expired_long_lived_or_foreign_manifest_is_refused(world: Any, make_package: Any) -> None:
    with pytest.raises(BundleError, match="days more, at most 30 are allowed"):
        await make_package(not_after=time.time() + 31 * 86400).submit(world)
    with pytest.raises(BundleError, match="expired"):
        await make_package(not_after=1.0).submit(world)
    with pytest.raises(BundleError, match="signed for federation 'other'"):
        await make_package(federation="other").submit(world)


async def test_the_same_signed_manifest_is_accepted_once(world: Any, make_package: Any) -> None:
    package = make_package()
    experiment = await package.submit(world)
    with pytest.raises(ConflictError, match="submitted before"):
        await package.submit(world)
    assert {path.split("/")[1] for path in left_behind(world)} == {experiment}


async def test_a_refused_submission_can_be_sent_again_with_the_same_signature(world: Any, make_package: Any) -> None:
    package = make_package()
    whole, package.model = package.model, package.model[:-1] + b"\x01"
    with pytest.raises(BundleError):
        await package.submit(world)
    package.model = whole
    assert await package.submit(world)


async def test_a_bundle_that_is_too_large_is_refused_before_it_is_sent(world: Any, make_package: Any) -> None:
    with pytest.raises(LimitError, match="takes at most"):
        await make_package(bundle_bytes=2**40).submit(world)


async def test_a_submission_that_stops_half_way_is_refused(world: Any, make_package: Any) -> None:
    package = make_package()
    package.model = package.model[:-1]
    with pytest.raises(FederationError, match="the model ended after"):
        await package.submit(world)
    assert left_behind(world) == []


async def test_a_rule_that_is_not_installed_is_named(world: Any, make_package: Any) -> None:
    with pytest.raises(FederationError, match=r"no aggregation rule 'krumb' here, only .*; did you mean 'krum'"):
        await make_package(plan={"rule": "krumb"}).submit(world)


async def test_an_envoy_may_not_submit(world: Any, make_package: Any) -> None:
    with pytest.raises(IdentityError, match="is for user"):
        await world.stub(Role.ENVOY, "north").client_stream("Submit", make_package().requests())


@pytest.fixture
def settings(settings: Any) -> Any:
    return settings.model_copy(update={"limits": settings.limits.model_copy(update={"experiments_per_user": 2})})


async def test_a_user_may_have_only_so_many_experiments_at_once(world: Any, make_package: Any) -> None:
    for _ in range(2):
        await make_package().submit(world)
    with pytest.raises(LimitError, match="2 experiments that are not over"):
        await make_package().submit(world)
    assert await make_package(user="bob").submit(world, user="bob")

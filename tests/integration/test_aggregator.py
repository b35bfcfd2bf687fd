"""A real aggregator and scripted sites over real mutual TLS, in one process; no director, no trainer."""

from __future__ import annotations

import numpy as np
import pytest

from federation.errors import (
    ConflictError,
    IdentityError,
    MalformedMessageError,
    NotFoundError,
    PeerError,
    TransportError,
)
from federation.names import Role, SiteName
from federation.plan import EarlyStopping
from federation.storage.safetensors_files import read_model
from federation.tensors import DType, TensorRole, TensorSchema, TensorSpec
from federation.testing.aggregators import flat_schema
from federation.testing.honest_sites import HonestSite
from federation.testing.scripted_sites import ScriptedSite
from federation.v1 import aggregator_pb2 as pb

from .stages import history, run_all, stage


async def test_three_rounds_arrive_at_the_weighted_mean(tmp_path):
    built = stage(tmp_path)
    async with built.aggregator() as running:
        a = built.site("site-a", running.address, target=1.0, train_examples=300)
        b = built.site("site-b", running.address, target=5.0, train_examples=100)
        assert await run_all(a, b) == ["completed", "completed"]
        record = await running.ended()
    assert record.outcome == "completed"
    _, arrays = read_model(built.work / "artifacts" / "last.safetensors")
    # Halfway to the mean target of 2, three times over.
    np.testing.assert_allclose(arrays["weight"], 2 * (1 - 0.5**3), rtol=1e-6)
    rounds = history(built)["rounds"]
    assert [row["round"] for row in rounds] == [1, 2, 3]
    assert [site["weight"] for site in rounds[0]["sites"]] == [0.75, 0.25]
    assert rounds[0]["metrics"]["loss"] == pytest.approx((0 + 16) / 2)  # weighted by validation examples
    assert rounds[2]["is_best"] and [verdict.counted for verdict in a.verdicts] == [True] * 3
    assert a.trained == [1, 2, 3]


async def test_what_a_site_was_sent_to_evaluate_is_not_sent_again_to_train_from_unless_its_session_is_new(tmp_path):
    built = stage(tmp_path, sites="a", rounds=2)
    async with built.aggregator() as running:
        site = built.site("site-a", running.address)
        await site.connect()
        await site.ready()
        first = await site.next_task()
        await site.answer(first)
        evaluation = await site.next_task()
        await site.answer(evaluation)
        second = await site.next_task()
        assert [len(task.inline) for task in (first, evaluation, second)] == [1, 1, 0]
        assert second.payloads[0].digest == evaluation.payloads[0].digest
        assert second.verdict.counted and second.verdict.round == 1
        await site.vanish()
        site = built.site("site-a", running.address)
        await site.connect()
        await site.ready()
        again = await site.next_task()
        assert (again.round, len(again.inline)) == (2, 1)
        await site.vanish()


async def test_a_site_that_comes_back_and_cannot_even_prepare_says_so_and_the_round_goes_on_without_it(tmp_path):
    built = stage(tmp_path, rounds=1, quorum=1, minimum_sites=1, evaluate_every=0)
    async with built.aggregator() as running:
        a, b = (built.site(name, running.address) for name in ("site-a", "site-b"))
        for site in (a, b):
            await site.connect()
            await site.ready()
        task, _ = [await site.next_task() for site in (a, b)]
        await b.cut()
        await b.connect()
        failed = pb.TaskFailure(kind=pb.TASK_KIND_TRAIN, epoch=1, error_class="TrainerDied", permanent=True)
        await b.say(pb.ParticipateRequest(failed=failed))
        await a.answer(task)
        assert (await b.hear()).finish.outcome == "completed"
        for site in (a, b):
            await site.vanish()
        await running.ended()
    (row,) = [row for row in history(built)["rounds"][0]["sites"] if row["site"] == "site-b"]
    assert (row["outcome"], row["reason"]) == ("failed", "TrainerDied")


async def test_the_best_model_is_kept_though_later_ones_are_worse(tmp_path):
    class Drifting(HonestSite):
        def loss(self, model):
            return 1.0 if self.trained[-1] == 2 else 2.0

    built = stage(tmp_path, "a", rounds=3)
    async with built.aggregator() as running:
        await run_all(built.site("site-a", running.address, Drifting))
        await running.ended()
    _, best = read_model(built.work / "artifacts" / "best.safetensors")
    _, last = read_model(built.work / "artifacts" / "last.safetensors")
    np.testing.assert_allclose(best["weight"], 1 - 0.5**2)
    np.testing.assert_allclose(last["weight"], 1 - 0.5**3)
    assert [row["is_best"] for row in history(built)["rounds"]] == [True, True, False]


async def test_a_large_model_is_pulled_once_and_evaluated_models_are_not_fetched_again(tmp_path):
    built = stage(tmp_path, schema=flat_schema(1_000_003), rounds=2)
    async with built.aggregator() as running:
        a, b = built.site("site-a", running.address), built.site("site-b", running.address)
        assert await run_all(a, b) == ["completed", "completed"]
        await running.ended()
    assert a.pulled_bytes == 3 * 4 * 1_000_003, "the initial model and two candidates"
    assert history(built)["rounds"][1]["bytes_up"] == 2 * 4 * 1_000_003
    assert {path.read_bytes()[:1] for path in (built.work / "spool").glob("admitted-*")} == {b"-"}, "no record is left"


async def test_every_role_and_dtype_is_combined_as_it_should_be(tmp_path):
    schema = TensorSchema.of(
        [
            TensorSpec(name="half", dtype=DType.FLOAT16, shape=(5,)),
            TensorSpec(name="brain", dtype=DType.BFLOAT16, shape=(5,)),
            TensorSpec(name="wide", dtype=DType.FLOAT64, shape=(3, 2)),
            TensorSpec(name="mean", dtype=DType.FLOAT32, shape=(4,), role=TensorRole.BUFFER),
            TensorSpec(name="count", dtype=DType.INT64, shape=(), role=TensorRole.BUFFER),
            TensorSpec(name="head", dtype=DType.FLOAT32, shape=(7,), role=TensorRole.LOCAL),
        ]
    )
    built = stage(tmp_path, schema=schema, optimizer=flat_schema(6), value=0.25, optimizer_state="aggregate")
    async with built.aggregator() as running:
        a = built.site("site-a", running.address, target=1.0)
        b = built.site("site-b", running.address, target=2.0)
        assert await run_all(a, b) == ["completed", "completed"]
        await running.ended()
        assert a.welcome.base.encoded_bytes == 28
    _, arrays = read_model(built.work / "artifacts" / "last.safetensors")
    expected = 1.5 - 1.25 * 0.5**3
    np.testing.assert_allclose(arrays["wide"], expected)
    np.testing.assert_allclose(arrays["half"].astype(float), expected, rtol=1e-3)
    np.testing.assert_allclose(arrays["brain"].astype(float), expected, rtol=1e-2)
    np.testing.assert_allclose(arrays["mean"], 3.25)
    assert arrays["count"] == 3 and (arrays["head"] == 0.25).all()
    _, state = read_model(built.work / "checkpoints" / "optimizer.odd.safetensors")
    np.testing.assert_allclose(state["weight"], 1.5)


async def test_a_session_cut_for_a_moment_is_asked_again_and_loses_no_round(tmp_path):
    built = stage(tmp_path, rounds=1)
    async with built.aggregator(site_grace_s=60) as running:
        async with built.site("site-a", running.address) as a, built.site("site-b", running.address) as b:
            for site in (a, b):
                await site.connect()
                await site.ready()
            await a.answer(await a.next_task())
            await b.next_task()
            await b.cut()
            await b.connect()
            await b.ready()
            await b.answer(await b.next_task())
            for site in (a, b):
                await site.answer(await site.next_task())
            assert (await running.ended()).outcome == "completed"
    assert b.trained == [1, 1]
    assert not history(built)["degraded"]


async def test_a_site_that_missed_its_verdict_hears_it_when_it_is_back(tmp_path):
    built = stage(tmp_path, rounds=2, evaluate_every=0)
    async with built.aggregator(site_grace_s=60) as running:
        async with built.site("site-a", running.address) as a, built.site("site-b", running.address) as b:
            for site in (a, b):
                await site.connect()
                await site.ready()
            await a.answer(await a.next_task())
            await a.cut()
            await b.answer(await b.next_task())
            assert (await b.next_task()).round == 2, "round 1 is committed"
            missed = a.pending
            welcome = await a.connect()
            assert welcome.round == 2
            verdict = (await a.hear()).verdict
            assert verdict.counted and verdict.update_id == missed.update_id


async def test_a_newer_session_supersedes_the_older_and_says_so(tmp_path):
    built = stage(tmp_path, "ab")
    async with built.aggregator() as running:
        async with built.site("site-a", running.address) as older, built.site("site-a", running.address) as newer:
            await older.connect()
            await older.ready()
            await newer.connect()
            with pytest.raises(ConflictError, match="superseded"):
                await older.hear()


@pytest.mark.parametrize(
    ("change", "error"),
    [
        pytest.param(lambda hello: setattr(hello, "experiment", "other-00000001"), NotFoundError, id="experiment"),
        pytest.param(lambda hello: setattr(hello, "plan_digest", bytes(32)), PeerError, id="plan"),
        pytest.param(lambda hello: setattr(hello.protocol, "lowest", 99), MalformedMessageError, id="empty range"),
        pytest.param(lambda hello: hello.protocol.MergeFrom(type(hello.protocol)(lowest=98, highest=99)), PeerError,
                     id="protocol"),
    ],
)  # fmt: skip
async def test_a_session_for_something_else_is_refused(tmp_path, change, error):
    built = stage(tmp_path)
    async with built.aggregator() as running, built.site("site-a", running.address) as site:
        with pytest.raises(error):
            await site.connect(change)


async def test_a_site_that_the_roster_lacks_is_refused(tmp_path):
    built = stage(tmp_path)
    async with built.aggregator() as running, built.site("stranger", running.address) as site:
        with pytest.raises(IdentityError, match="stranger"):
            await site.connect()


async def test_a_user_is_no_site(tmp_path):
    built = stage(tmp_path)
    tls = built.tls_of(Role.USER, "site-a")
    async with built.aggregator() as running:
        async with ScriptedSite(SiteName("site-a"), built.meeting(running.address), tls) as user:
            with pytest.raises(IdentityError, match="role user"):
                await user.connect()


async def test_a_plaintext_client_is_refused(tmp_path):
    built = stage(tmp_path)
    async with built.aggregator() as running:
        async with ScriptedSite(SiteName("site-a"), built.meeting(running.address), None) as site:
            with pytest.raises(TransportError):
                await site.connect()


async def test_a_failing_site_says_why_and_the_experiment_fails_with_that_reason(tmp_path):
    built = stage(tmp_path, "a", max_failures=1)
    async with built.aggregator() as running, built.site("site-a", running.address) as site:
        await site.connect()
        await site.ready()
        for attempt in (1, 2):
            task = await site.next_task()
            assert task.attempt == attempt
            await site.fail(task, "ZeroDivisionError")
        record = await running.ended()
    assert record.outcome == "failed" and "ZeroDivisionError" in record.reason


async def test_a_miss_drops_the_attempts_updates_and_says_so(tmp_path):
    built = stage(tmp_path, "ab")
    async with built.aggregator() as running:
        async with built.site("site-a", running.address) as a, built.site("site-b", running.address) as b:
            for site in (a, b):
                await site.connect()
                await site.ready()
            await a.answer(await a.next_task())
            await b.fail(await b.next_task())
            assert (await a.next_task()).attempt == 2
            assert [(v.counted, v.reason, v.attempt) for v in a.verdicts] == [(False, "quorum lost", 1)]


async def test_metrics_outside_the_plan_cost_a_site_its_say(tmp_path):
    built = stage(tmp_path, "ab", rounds=1)
    async with built.aggregator() as running:
        async with built.site("site-a", running.address) as a, built.site("site-b", running.address) as b:
            for site in (a, b):
                await site.connect()
                await site.ready()
            for site in (a, b):
                await site.answer(await site.next_task())
            await a.report(await a.next_task(), {"loss": float("nan")})
            await b.report(await b.next_task(), {"loss": 3.0})
            await running.ended()
    assert history(built)["rounds"][0]["metrics"] == {"loss": 3.0}


async def test_sealed_messages_are_passed_on_with_the_senders_name(tmp_path):
    built = stage(tmp_path, "abc", minimum_sites=3)
    async with built.aggregator() as running:
        async with built.site("site-a", running.address) as a, built.site("site-b", running.address) as b:
            await a.connect()
            await a.ready()
            await b.connect()  # not ready yet: its session is enough
            await a.say(pb.ParticipateRequest(sealed=pb.SealedMessage(peer="site-b", purpose="test", body=b"x")))
            sealed = (await b.hear()).sealed
            assert (sealed.peer, sealed.body) == ("site-a", b"x")
            await a.say(pb.ParticipateRequest(sealed=pb.SealedMessage(peer="../b", purpose="test")))
            with pytest.raises(MalformedMessageError):
                await a.hear()


async def test_early_stopping_ends_the_experiment_well(tmp_path):
    built = stage(tmp_path, "a", rounds=50, early_stopping=EarlyStopping(patience=2, min_delta=0.2))
    async with built.aggregator() as running:
        await run_all(built.site("site-a", running.address))
        record = await running.ended()
    assert record.outcome == "completed" and "stopped early" in record.reason


async def test_a_diverged_model_fails_the_experiment_with_a_reason(tmp_path):
    built = stage(tmp_path, "a", schema=flat_schema(4, DType.FLOAT16), value=60000.0)
    async with built.aggregator() as running:
        site = built.site("site-a", running.address, target=180000.0)
        assert await run_all(site) == ["failed"]
        assert "diverged" in (await running.ended()).reason


async def test_what_the_process_shows_prometheus_is_what_happened(tmp_path):
    built = stage(tmp_path, rounds=2)
    async with built.aggregator() as running:
        await run_all(*(built.site(name, running.address) for name in ("site-a", "site-b")))
        sample = running.aggregator.metrics.registry.get_sample_value
        assert sample("federation_updates_admitted_total") == 4
        assert sample("federation_rounds_committed_total") == 2
        assert sample("federation_round_phase_seconds_count", {"phase": "collect"}) == 2
        assert sample("federation_payload_bytes_total", {"direction": "in", "payload": "delta"}) == 4 * 40
        assert sample("federation_payload_bytes_total", {"direction": "out", "payload": "model"}) == 6 * 40
        assert sample("federation_evaluation_metric", {"metric": "loss", "site": ""}) == pytest.approx(0.0625)
        await running.ended()

"""What a load makes of its answers, against a real fleet with one fault."""

from dataclasses import replace
from random import Random

from drills.load import Load
from drills.mix import questions
from drills.outcome import Outcome
from llava_grpc.client import AsyncClient
from llava_grpc.testing.cluster import Cluster


async def judged(load: Load) -> Outcome:
    outcome = Outcome("one")
    async with load:
        await load.more(10)
        await load.calm()
    outcome.judge(load)
    return outcome


async def test_answers_are_held_against_those_without_a_fault():
    async with Cluster(workers=1) as cluster, AsyncClient(cluster.address) as client:
        asked = await questions(client, Random(1), 5, tokens=(5, 20), at_once=5)
        outcome = await judged(Load(client, asked, 20.0, Random(2)))
        assert (outcome.broken, outcome.lost, outcome.different, outcome.streams) == ([], 0, 0, 0)
        assert outcome.answers >= 10
        wrong = [replace(one, whole=replace(one.whole, text="something else")) for one in asked]
        outcome = await judged(Load(client, wrong, 20.0, Random(2)))
        assert outcome.different == outcome.answers >= 10
        assert "differ" in outcome.verdict


async def test_a_request_that_fails_is_lost():
    async with Cluster(workers=1) as cluster, AsyncClient(cluster.address) as client:
        asked = await questions(client, Random(1), 2, tokens=(5, 20), at_once=5)
        [worker] = cluster.workers
        await worker.stop()
        outcome = await judged(Load(client, asked, 20.0, Random(2)))
        assert outcome.lost == outcome.answers >= 10
        assert "NO_LIVE_WORKER" in outcome.verdict

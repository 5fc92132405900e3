"""The CA comes back after an outage and everybody renews at once: its work stays bounded, and all have
a new leaf before the old one ends.

Nothing here measures a machine: the crowd at a real CA is held until the CA is full, and how long the
crowd takes is counted on a clock of the test's own.
"""

import asyncio
import heapq
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest

from certs.client.ca import make_request, retry_hint_s
from certs.client.renewal import longest_pause_s, pause_s
from certs.server import tokens as token_desk
from certs.server.limits import InFlight, Limits, TokenBuckets
from certs.server.refusals import TooMany
from kit.backoff import Backoff
from kit.clock import monotonic
from proto import ca_pb2
from tests.certs.fake_kube import FakeKube
from tests.certs.running_ca import running_ca

CROWD = 500
PLACES = 64
ACCOUNTS = 20
LIFETIME_S = 60.0
"""Of their leaves, half of which has gone by when the CA returns."""


def own_addresses() -> Limits:
    """The usual limits but for those per source: here all pods call from one address, and in a
    cluster each from its own."""
    limits = Limits.usual(monotonic)
    limits.in_flight = InFlight(PLACES, PLACES)
    limits.unread = InFlight(10**6, 10**6)
    limits.connections_per_source = 10**6
    limits.per_source = TokenBuckets(1e6, 10**6, monotonic, reason="rate_per_source")
    return limits


@pytest.mark.fault_row("renewal-stampede")
async def test_five_hundred_pods_at_once_find_a_bounded_ca_and_are_all_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_desk, "TIMEOUT_S", 170.0)  # held for as long as it takes
    fake = FakeKube()
    tokens = [
        fake.add_pod(name=f"pod-{n}", account=f"account-{n % ACCOUNTS}") for n in range(CROWD)
    ]
    request = ca_pb2.SignRequest(csr_der=make_request()[1])
    async with running_ca(tmp_path, fake, limits=own_addresses()) as ca:
        shed = set[str]()
        answering, in_flight = asyncio.Event(), ca.server.limits.in_flight
        fake.wait = answering.wait  # no call ends, so those that came stay in work

        async def renew(token: str) -> None:
            """Ask again whenever the CA sheds the call, and heed its hint."""
            metadata = (("authorization", f"Bearer {token}"),)
            async with ca.stub() as stub:  # a connection of its own, as every pod has
                while True:
                    try:
                        await stub.Sign(request, metadata=metadata, timeout=170)
                    except grpc.aio.AioRpcError as e:
                        assert e.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
                        hint_s = retry_hint_s(e)
                        assert hint_s is not None and hint_s > 0
                        shed.add(token)
                        if len(shed) == CROWD - PLACES and not answering.is_set():
                            assert in_flight.now == in_flight.peak == PLACES
                            answering.set()
                        await answering.wait()
                        await asyncio.sleep(hint_s)
                    else:
                        return

        await asyncio.gather(*map(renew, tokens))
        assert len(shed) >= CROWD - PLACES, "all that did not fit, and no call was queued"
        assert in_flight.peak == PLACES and in_flight.now == 0
        assert len({i.serial for i in ca.issued}) == len(ca.issued) == CROWD


@pytest.mark.fault_row("renewal-stampede")
@pytest.mark.parametrize("answer_s", [0.001, 0.05, 0.5, 1.0])
def test_every_pod_of_a_crowd_renews_before_its_leaf_ends(answer_s: float) -> None:
    """The limits and the pauses together, on a clock of the test's own: `answer_s` is how long the API
    server takes over one call."""
    now = 0.0
    limits = Limits.usual(lambda: now)
    backoffs = [Backoff(first_s=0.5, longest_s=longest_pause_s(LIFETIME_S)) for _ in range(CROWD)]
    places = [ExitStack() for _ in range(CROWD)]
    arrivals = [(0.0, pod, "asks") for pod in range(CROWD)]
    done_at = dict[int, float]()
    shed = 0
    while arrivals:
        now, pod, event = heapq.heappop(arrivals)
        if event == "is answered":
            places[pod].close()
            done_at[pod] = now
            continue
        account = f"account-{pod % ACCOUNTS}"
        try:
            with ExitStack() as taken:
                taken.enter_context(limits.in_flight.one(f"10.0.0.{pod}"))
                limits.per_source.take(f"10.0.0.{pod}")
                limits.in_all.take("")
                limits.per_pod.take(str(pod))
                limits.per_identity.take(account)
                taken.enter_context(limits.identities_in_flight.one(account))
                places[pod] = taken.pop_all()
            heapq.heappush(arrivals, (now + answer_s, pod, "is answered"))
        except TooMany as e:
            shed += 1
            wait_s = max(pause_s(backoffs[pod].next_s()), e.retry_after_s or 0.0)
            heapq.heappush(arrivals, (now + wait_s, pod, "asks"))
    assert len(done_at) == CROWD
    assert max(done_at.values()) < LIFETIME_S / 2, "before any leaf ends"
    assert limits.in_flight.peak == PLACES
    assert shed >= CROWD - PLACES

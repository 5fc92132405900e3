"""The pool of idle tunnels, driven with tunnels whose life a test decides and a clock it moves."""

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from certs.trust.identity import WorkloadIdentity
from sidecar.dataplane.tunnels.pool import REPLACE_BEFORE_S, Key, Pool, PoolLimits
from sidecar.errors import PeerLost, ProtocolViolation
from sidecar.wire.frames import GOAWAY

API = WorkloadIdentity("cluster.local", "shop", "api")
KEY: Key = ("10.0.0.1", 80, str(API))
OTHER: Key = ("10.0.0.2", 80, str(API))


class FakeTimer:
    def cancel(self) -> None:
        """No loop runs it."""


class FakeLoop:
    """Keeps what is to be called soon, for the test to call."""

    def __init__(self) -> None:
        self.soon: list[Any] = []

    def call_later(self, delay_s: float, call: Any) -> FakeTimer:
        return FakeTimer()

    def call_soon(self, call: Any) -> None:
        self.soon.append(call)

    def run(self) -> None:
        while self.soon:
            self.soon.pop(0)()


class FakeTunnel:
    def __init__(self, expires_at: float = 1e9) -> None:
        self.expires_at, self.idle_since = expires_at, 0.0
        self.reusable, self.closed = True, False
        self.key: object = None
        self.user: Any = None

    def close(self) -> None:
        self.closed, self.reusable = True, False

    def allow_again(self) -> None:
        """Its frames' budgets, which no fake has."""


class Bench:
    """A pool and all that it is given."""

    def __init__(self, **limits: Any) -> None:
        self.loop, self.now = FakeLoop(), 0.0
        self.pool = Pool(self.loop, lambda: self.now, PoolLimits(**limits))  # type: ignore[arg-type]

    def give(self, key: Key = KEY, **of: Any) -> FakeTunnel:
        tunnel = FakeTunnel(**of)
        self.pool.give(key, tunnel)  # type: ignore[arg-type]
        return tunnel


def test_the_tunnel_used_last_is_taken_first() -> None:
    bench = Bench()
    tunnels = [bench.give() for _ in range(3)]
    taken: list[object] = [bench.pool.take(KEY) for _ in range(4)]
    assert taken == [*reversed(tunnels), None]


def test_a_tunnel_is_for_its_own_address_port_and_identity_only() -> None:
    bench = Bench()
    bench.give()
    someone_else = WorkloadIdentity("cluster.local", "shop", "db")
    for key in (OTHER, (KEY[0], 81, str(API)), (KEY[0], 80, str(someone_else))):
        assert bench.pool.take(key) is None


def test_limits_close_the_newest_of_one_peer_and_the_oldest_of_all() -> None:
    bench = Bench(idle_per_peer=2, idle_in_all=3)
    first, _, third = bench.give(), bench.give(), bench.give()
    assert third.closed and not first.closed
    bench.give(OTHER)
    bench.give(OTHER)
    assert first.closed
    assert len(bench.pool) == 3


def test_idle_tunnels_and_those_about_to_expire_are_swept() -> None:
    bench = Bench(idle_s=60.0)
    old = bench.give()
    bench.now = 30.0
    young, ending = bench.give(), bench.give(expires_at=61.0 + REPLACE_BEFORE_S - 0.5)
    bench.now = 61.0
    bench.pool._sweep()
    assert (old.closed, young.closed, ending.closed) == (True, False, True)
    assert len(bench.pool) == 1


def test_a_tunnel_about_to_expire_takes_no_new_link() -> None:
    bench = Bench()
    ending = bench.give(expires_at=REPLACE_BEFORE_S)
    assert bench.pool.take(KEY) is None
    assert ending.closed


@pytest.mark.fault_row("drain")
def test_an_idle_tunnel_whose_peer_goes_away_or_vanishes_is_dropped() -> None:
    bench = Bench()
    going, lost = bench.give(), bench.give()
    going.user.tunnel_control(GOAWAY, b"")
    lost.user.tunnel_lost(PeerLost("gone"))
    assert going.closed and lost.closed
    assert bench.pool.take(KEY) is None


@pytest.mark.attack_row(21)
def test_data_on_an_idle_tunnel_is_a_violation() -> None:
    with pytest.raises(ProtocolViolation):
        Bench().give().user.tunnel_data(memoryview(b"x"))


class EveryLinkGetsItsTurn(RuleBasedStateMachine):
    """Links as `outbound` has them: each waits if the pool is crowded, and in its turn takes an idle
    tunnel or dials; dials succeed or fail, links end well or badly or give up while they wait.

    Whatever happens, once everything under way has ended nobody waits any more.
    """

    LIMIT = 2

    def __init__(self) -> None:
        super().__init__()
        self.bench = Bench(idle_per_peer=2, idle_in_all=2, dials_per_peer=self.LIMIT)
        self.waiting: list[int] = []
        self.dialling: list[int] = []
        self.linked: list[tuple[int, FakeTunnel]] = []
        self.gone: set[int] = set()
        self.made = 0

    def _turn(self, link: int) -> None:
        if link in self.waiting:
            self.waiting.remove(link)
        if link in self.gone:
            return self.bench.pool.pass_on(KEY)
        tunnel: Any = self.bench.pool.take(KEY)
        if tunnel is not None:
            self.linked.append((link, tunnel))
        else:
            self.bench.pool.dial_began(KEY)
            self.dialling.append(link)

    @rule()
    def begin(self) -> None:
        self.made += 1
        link = self.made
        if self.bench.pool.crowded(KEY):
            self.waiting.append(link)
            self.bench.pool.wait(KEY, lambda: self._turn(link))
        else:
            self._turn(link)

    @precondition(lambda self: self.dialling)
    @rule(works=st.booleans(), which=st.integers(0, 9))
    def end_dial(self, works: bool, which: int) -> None:
        link = self.dialling.pop(which % len(self.dialling))
        self.bench.pool.dial_ended(KEY)
        if works:
            self.linked.append((link, FakeTunnel()))

    @precondition(lambda self: self.linked)
    @rule(well=st.booleans(), which=st.integers(0, 9))
    def end_link(self, well: bool, which: int) -> None:
        _, tunnel = self.linked.pop(which % len(self.linked))
        if not well:
            tunnel.close()
        self.bench.pool.give(KEY, tunnel)  # type: ignore[arg-type]

    @precondition(lambda self: self.waiting)
    @rule(which=st.integers(0, 9))
    def give_up(self, which: int) -> None:
        self.gone.add(self.waiting[which % len(self.waiting)])

    @rule()
    def turn_of_the_loop(self) -> None:
        self.bench.loop.run()

    @invariant()
    def idle_tunnels_are_bounded_and_alive(self) -> None:
        assert len(self.bench.pool) <= 2
        assert all(not tunnel.closed for tunnel in self.bench.pool._by_age)

    def teardown(self) -> None:
        for _ in range(10 * self.made + 10):
            self.bench.loop.run()
            if self.dialling:
                self.end_dial(works=False, which=0)
            elif self.linked:
                self.end_link(well=False, which=0)
        assert not self.waiting, "a wake-up was lost"
        assert not self.bench.pool._dials
        self.bench.pool.close()
        assert len(self.bench.pool) == 0


TestEveryLinkGetsItsTurn = EveryLinkGetsItsTurn.TestCase
TestEveryLinkGetsItsTurn.settings = settings(max_examples=40, stateful_step_count=40)


def test_a_full_pool_that_drops_the_only_tunnel_of_the_same_peer_goes_on_being_swept() -> None:
    bench = Bench(idle_per_peer=5, idle_in_all=1)
    first, second = bench.give(), bench.give()
    assert first.closed and len(bench.pool) == 1
    bench.now = 1e6  # both are too old
    bench.pool._sweep()
    assert second.closed and len(bench.pool) == 0
    third = bench.give()
    assert bench.pool.take(KEY) is third  # type: ignore[comparison-overlap]

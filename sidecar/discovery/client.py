"""The stream to the registry, and the last answers.

The sidecar asks for what its app dials and for nothing else, so its memory does not grow with the
cluster. While the registry is away the last answers stay in force; what was never asked is asked
again and again for a while, over the next stream too, and then refused rather than guessed.

Whatever the app dials is asked for once, addresses outside of the cluster too, and the answer stays
until the registry says otherwise. So many at once must not flood the registry: what is asked within one
turn of the loop goes as one message, and only so many questions are on their way at a time.
"""

import asyncio
import logging
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Final

import grpc

from certs.client.rpc import NoCertificate
from kit.backoff import Backoff
from kit.checked import Fields
from kit.contract import VERSION
from kit.limited_log import LimitedLog
from proto import registry_pb2 as pb
from proto.registry_pb2_grpc import RegistryStub
from sidecar.directory import (
    EXTERNAL,
    Answer,
    External,
    Found,
    Gone,
    Own,
    Workload,
    is_port_key,
)
from sidecar.discovery.translate import (
    NotUnderstood,
    checked_settings,
    found,
    held_endpoints,
)

ANSWER_WITHIN_S: Final = 3.0
"""How long a link waits for a first word on its destination: a registry that restarts or stalls for
a moment should cost it time and not refuse it."""
ASK_AGAIN_S: Final = 0.5
"""Between one asking and the next, growing by half each time."""
GONE_S: Final = 300.0
"""How long the address of a meshed pod that went counts as nobody's, and not as external."""
HOLD_S: Final = 10.0
"""How long the endpoints of a Service outlive a new stream that knows of none."""
ACK_WITHIN_S: Final = 0.2
"""How long an acknowledgement waits for further messages to acknowledge with it."""
FIRST_ANSWER_WITHIN_S: Final = 10.0
"""Before the registry has spoken at all: we have just started, and links are held until then."""
MAX_KEYS: Final = 8192
"""Addresses kept; the one that was of use longest ago is given up first."""
MAX_ASKED: Final = 256
"""Questions on their way; the next ones wait their turn, and their time runs meanwhile."""
MAX_WAITING: Final = 4096
"""Questions in all. What is more has no answer at once."""
MAX_FOR_RECORD: Final = 64
"""Questions at which one that no link waits for has no answer at once."""
_SUBSCRIBED_AT_ONCE: Final = 500
"""Keys of one message: the registry takes 256 KiB."""
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.1, 5.0
_log = logging.getLogger(__name__)

GetChannel = Callable[[], grpc.aio.Channel]
"""The channel for a stream that starts now; may raise NoCertificate."""


class _Question:
    """A key that nobody has answered yet, and who waits for it."""

    __slots__ = ("answers", "asked", "deadline", "for_record", "timer", "wait_s")

    def __init__(self, deadline: float) -> None:
        self.answers: list[Answer] = []
        self.deadline, self.wait_s = deadline, ASK_AGAIN_S
        self.timer: asyncio.TimerHandle | None = None
        self.asked = False
        self.for_record = True
        """No link waits for it."""


class RegistryClient:
    """A `sidecar.directory.Directory`. `run` keeps the stream up until it is cancelled.

    `on_settings` is called with what the registry says of this pod itself, at once and on change; it
    raises NotUnderstood if it cannot put that into force.
    """

    def __init__(
        self,
        own: Own,
        trust_domain: str,
        get_channel: GetChannel,
        on_settings: Callable[[pb.PodSettings], None],
    ) -> None:
        self._own, self._trust_domain = own, trust_domain
        self._get_channel, self._on_settings = get_channel, on_settings
        self._found: OrderedDict[str, Found] = OrderedDict()
        self._digests: dict[str, int] = {}
        """Of what is kept of each key, by the registry: a new stream need not say it again."""
        self._waiting: dict[str, _Question] = {}
        self._asked = 0
        """How many of `_waiting` are on their way."""
        self._in_turn: deque[str] = deque()
        """Those that are not, in the order in which they came; some are given up by now."""
        self._next_keys: list[str] = []
        """What the next message asks for."""
        self._first_of_stream: set[str] = set()
        """Keys of which the present stream has said nothing yet."""
        self._to_send: asyncio.Queue[pb.DiscoverRequest | None] = asyncio.Queue()
        """For the present stream; None ends its sending half."""
        self._version = 0
        self._ack_timer: asyncio.TimerHandle | None = None
        self.changed: Callable[[str, Found | None], None] = _nobody_cares
        """Told of every word about a key before it is in force, and with None when it is forgotten."""
        self.on_banned: Callable[[], None] = lambda: None
        """Called when the registry says that we are banned."""
        self.refused: Counter[str] = Counter()
        """What the registry said and was left out, by reason."""
        self._limited = LimitedLog(_log)
        self.connected = False
        self.ready = asyncio.Event()
        """Set once the registry has said what is in force for this pod."""

    # --- Directory --------------------------------------------------------------------------

    def known(self, key: str) -> Found | None:
        found = self._found.get(key)
        if found is not None:  # what is in use outlives a flood of addresses that are seen once
            self._found.move_to_end(key)
        return found

    def all(self) -> Mapping[str, Found]:
        """Everything that was asked and answered, by key; for the admin socket."""
        return self._found

    def ask(self, key: str, answer: Answer, *, for_record: bool = False) -> None:
        if (already := self._found.get(key)) is not None:
            return answer(already)
        return self._wait(key, answer, for_record)

    def ask_anew(self, key: str, answer: Answer) -> None:
        self._wait(key, answer, for_record=False)

    def _wait(self, key: str, answer: Answer, for_record: bool) -> None:
        question = self._waiting.get(key)
        if question is None:
            if len(self._waiting) >= (MAX_FOR_RECORD if for_record else MAX_WAITING):
                self.refused["too_many_questions"] += not for_record
                return answer(self._found.get(key))
            loop = asyncio.get_running_loop()
            within_s = ANSWER_WITHIN_S if self.ready.is_set() else FIRST_ANSWER_WITHIN_S
            self._waiting[key] = question = _Question(loop.time() + within_s)
            if self._asked < MAX_ASKED:
                self._put(key, question)
            else:
                self._in_turn.append(key)
                question.timer = loop.call_later(within_s, self._not_answered, key)
        question.for_record &= for_record
        question.answers.append(answer)
        return None

    def _put(self, key: str, question: _Question) -> None:
        """Ask, and look again later. Without a stream the next one brings the question along."""
        loop = asyncio.get_running_loop()
        if not question.asked:
            question.asked = True
            self._asked += 1
        if not self._next_keys:
            loop.call_soon(self._send_keys)
        self._next_keys.append(key)
        wait_s = max(0.0, min(question.wait_s, question.deadline - loop.time()))
        question.wait_s *= 1.5
        question.timer = loop.call_later(wait_s, self._not_answered, key)

    def _send_keys(self) -> None:
        keys, self._next_keys = self._next_keys, []
        self._to_send.put_nowait(pb.DiscoverRequest(subscribe=pb.Subscribe(keys=keys)))

    def _not_answered(self, key: str) -> None:
        question = self._waiting[key]
        if question.asked and asyncio.get_running_loop().time() < question.deadline:
            return self._put(key, question)
        self._over(key)
        known = self._found.get(key)  # asked anew: then the old word is better than none
        for answer in question.answers:
            answer(known)
        return None

    def _over(self, key: str) -> _Question | None:
        """Nobody waits for the key any more; the next in turn are asked."""
        question = self._waiting.pop(key, None)
        if question is None:
            return None
        assert question.timer is not None
        question.timer.cancel()
        self._asked -= question.asked
        while self._in_turn and self._asked < MAX_ASKED:
            next_key = self._in_turn.popleft()
            if (waiting := self._waiting.get(next_key)) is not None and not waiting.asked:
                assert waiting.timer is not None
                waiting.timer.cancel()
                self._put(next_key, waiting)
        return question

    # --- the stream -------------------------------------------------------------------------

    async def run(self) -> None:
        backoff = Backoff(_FIRST_WAIT_S, _LONGEST_WAIT_S)
        while True:
            try:
                await self._converse(self._get_channel(), backoff)
            except NoCertificate:
                _log.warning("no certificate in force to show to the registry")
            except grpc.aio.AioRpcError as e:
                _log.warning(
                    "registry stream broke",
                    extra={"code": e.code().name, "detail": e.details()},
                )
                if e.code() is grpc.StatusCode.INVALID_ARGUMENT:
                    self._forget_ports()
                if e.code() is grpc.StatusCode.PERMISSION_DENIED and e.details() == "banned":
                    self.on_banned()
            except Exception:  # whatever came: a proxy without a registry's word is no proxy
                self.refused["bug"] += 1
                _log.exception("registry stream given up, a new one follows")
            finally:
                self.connected = False
            await asyncio.sleep(backoff.next_s())

    def _forget_ports(self) -> None:
        """A registry of an older version ends the stream of whoever asks for one port of an address. It
        says anew what the address is, and of none that it has such ports."""
        for key in [key for key in (*self._found, *self._waiting) if is_port_key(key)]:
            if self._found.pop(key, None) is not None:
                self.changed(key, None)
            self._digests.pop(key, None)
            question = self._over(key)
            for answer in question.answers if question is not None else ():
                answer(None)

    async def _converse(self, channel: grpc.aio.Channel, backoff: Backoff) -> None:
        self._to_send = asyncio.Queue()
        asked = (key for key, question in self._waiting.items() if question.asked)
        keys = [*self._found, *(key for key in asked if key not in self._found)]
        own = self._own
        self._to_send.put_nowait(
            pb.DiscoverRequest(
                hello=pb.Hello(
                    pod_uid=own.uid, namespace=own.namespace, pod_name=own.name, version=VERSION
                )
            )
        )
        for begin in range(0, len(keys), _SUBSCRIBED_AT_ONCE):
            some = keys[begin : begin + _SUBSCRIBED_AT_ONCE]
            held = [0 if key in self._waiting else self._digests.get(key, 0) for key in some]
            subscribe = pb.Subscribe(keys=some, held=held)
            self._to_send.put_nowait(pb.DiscoverRequest(subscribe=subscribe))
        self._first_of_stream = set(self._found)
        try:
            async for response in RegistryStub(channel).Discover(self._requests()):
                if not self.connected:
                    self.connected = True
                    backoff.reset()
                    _log.info("registry stream up")
                self._apply(response)
        finally:
            if self._ack_timer is not None:
                self._ack_timer.cancel()
                self._ack_timer = None
            # gRPC does not end the task that asks us for requests when a stream breaks.
            self._to_send.put_nowait(None)

    async def _requests(self) -> AsyncIterator[pb.DiscoverRequest]:
        queue = self._to_send
        while (request := await queue.get()) is not None:
            yield request

    def _apply(self, response: pb.DiscoverResponse) -> None:
        self._first_of_stream.difference_update(response.same)
        for entry in response.entries:
            fields = Fields()
            try:
                value = found(entry, self._trust_domain, fields)
                self._keep(entry.key, value)
                if entry.key in self._found:
                    self._digests[entry.key] = entry.digest
            except NotUnderstood as e:
                self._left_out(e.reason, "registry entry not understood", str(e))
            except Exception as e:  # one key must not cost the others their answers
                self._left_out("bug", "registry entry not put into force", repr(e))
            for one in fields.refused:
                self._left_out(
                    one.reason, "part of a registry entry left out", f"{entry.key}: {one}"
                )
        if response.HasField("settings"):
            self._settings(response.settings)
        self._version = response.version
        if self._ack_timer is None:
            self._ack_timer = asyncio.get_running_loop().call_later(ACK_WITHIN_S, self._ack)

    def _settings(self, said: pb.PodSettings) -> None:
        fields = Fields()
        try:
            self._on_settings(checked_settings(said, fields))
            self.ready.set()
        except NotUnderstood as e:
            self._left_out(e.reason, "settings not understood, the old ones stay", str(e))
        for one in fields.refused:
            self._left_out(one.reason, "part of the settings left out", str(one))

    def _left_out(self, reason: str, message: str, error: str) -> None:
        self.refused[reason] += 1
        self._limited.warning(message, reason=reason, error=error)

    def _ack(self) -> None:
        """Once for all that came meanwhile: a change that hundreds hear of is not answered at once."""
        self._ack_timer = None
        self._to_send.put_nowait(pb.DiscoverRequest(ack=pb.Ack(version=self._version)))

    def _keep(self, key: str, value: Found) -> None:
        value = self._held(key, value)
        question = self._waiting.get(key)
        if question is None or not self._is_for_nothing(key, question, value):
            self.changed(key, value)
            self._found[key] = value
        if question is not None and value != Gone(""):  # else it may be a new pod's in a moment
            self._over(key)
            # Soon, not now: what goes wrong in a link must not end the stream.
            for answer in question.answers:
                asyncio.get_running_loop().call_soon(answer, value)
        if len(self._found) > MAX_KEYS:
            oldest, _ = self._found.popitem(last=False)
            self.changed(oldest, None)
            self._stop_hearing(oldest)

    def _is_for_nothing(self, key: str, question: _Question, value: Found) -> bool:
        """A stranger's address that was asked for a record alone is not kept: whoever dials us from many
        would drive out what the app uses."""
        if not question.for_record or key in self._found or not isinstance(value, External):
            return False
        self._stop_hearing(key)
        return True

    def _stop_hearing(self, key: str) -> None:
        self._digests.pop(key, None)
        self._to_send.put_nowait(pb.DiscoverRequest(unsubscribe=pb.Unsubscribe(keys=[key])))

    def _held(self, key: str, value: Found) -> Found:
        """What is in force for the key now that the registry has said `value`.

        The first word of a new stream may come from a registry that has just listed the cluster anew:
        if it says that a Service has lost all its endpoints at once, they are held for a while.
        """
        old = self._found.get(key)
        if value is EXTERNAL and isinstance(old, Workload) and old.identity is not None:
            gone = Gone(old.pod)
            asyncio.get_running_loop().call_later(GONE_S, self._hold_no_longer, key, gone, value)
            return gone
        if value is EXTERNAL and isinstance(old, Gone) and old.pod:
            return old
        if value == Gone("") and isinstance(old, Workload | Gone):
            return Gone(old.pod)
        if key not in self._first_of_stream:
            return value
        self._first_of_stream.discard(key)
        held = held_endpoints(old, value)
        if held is None:
            return value
        _log.warning("a service without endpoints after a new stream", extra={"service": held.key})
        asyncio.get_running_loop().call_later(HOLD_S, self._hold_no_longer, key, held, value)
        return held

    def _hold_no_longer(self, key: str, held: Found, value: Found) -> None:
        if self._found.get(key) is held:
            self.changed(key, value)
            self._found[key] = value


def _nobody_cares(_: str, value: Found | None) -> None:
    """Where links are carried in this very process, it asks for itself."""

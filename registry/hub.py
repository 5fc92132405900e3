"""Who asked for what, and what each has still to be told.

A change marks the key as due for those who asked for it; a key that is due twice is told once, as
it is then. So a slow reader costs at most one mark per key that it asked for, and a burst of
changes costs each reader one message.
"""

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Sequence

from registry.answers import Answers, Encoded, message
from registry.keys import Key, is_ip, topic_network
from registry.model import Topics, settings_topic
from registry.ranges import PodRanges

MAX_KEYS = 10_000
"""Per stream: a pod that talks to more than this many addresses is refused more."""
COALESCE_S = 0.01
MAX_RESPONSE_BYTES = 1 << 20
WINDOW = 16
"""Messages that may be unacknowledged: a sidecar that is slow to take them gets fewer and newer ones,
and nothing piles up for it here or in gRPC."""


class Subscription:
    """What one stream asked for. `take` waits until something is due and returns it."""

    def __init__(self, hub: "Hub", uid: str) -> None:
        self._hub, self.uid = hub, uid
        self._keys: dict[str, Key] = {}
        self._texts_on: defaultdict[str, set[str]] = defaultdict(set)
        self._told: dict[str, int] = {}
        """Digest of the last answer that the sidecar has of each key."""
        self._held: set[str] = set()
        """Keys of which it says that it has such an answer from an earlier stream."""
        self._due: dict[str, None] = {}
        self._settings_due = True
        self._told_settings: bytes | None = None
        self._wake = asyncio.Event()
        self._wake.set()
        self.version = 0
        self._acked = 0
        self.pod_gone = False

    def ask(self, keys: Iterable[Key | None], held: Sequence[int] = ()) -> int:
        """Answer `keys` at once and tell their changes; None stands for one that is none. Returns how
        many were left out, because there are MAX_KEYS already.

        `held`: the digest of what is held already of each key, 0 for nothing.
        """
        left_out = 0
        for number, key in enumerate(keys):
            if key is None:
                continue
            if key.text not in self._keys and len(self._keys) >= MAX_KEYS:
                left_out += 1
                continue
            self._keys[key.text] = key
            for topic in key.topics:
                self._texts_on[topic].add(key.text)
                self._hub.listen(topic, self)
            self._told.pop(key.text, None)  # whoever asks again is answered again
            if number < len(held) and held[number]:
                self._told[key.text] = held[number]
                self._held.add(key.text)
            self._due[key.text] = None
        self.wake()
        return left_out

    def drop(self, texts: Iterable[str]) -> None:
        """Tell no more of the keys spelled so; unknown ones are ignored."""
        for text in texts:
            if (key := self._keys.pop(text, None)) is not None:
                self._due.pop(text, None)
                self._told.pop(text, None)
                self._held.discard(text)
                for topic in key.topics:
                    self._texts_on[topic].discard(text)
                    if not self._texts_on[topic]:
                        del self._texts_on[topic]
                        self._hub.stop_listening(topic, self)

    def changed(self, topic: str) -> None:
        """What is known of `topic` may differ now; `wake` follows."""
        if topic == settings_topic(self.uid):
            self._settings_due = True
        for text in self._texts_on.get(topic, ()):
            self._due[text] = None

    def wake(self) -> None:
        if self.version - self._acked < WINDOW:
            self._wake.set()

    def ack(self, version: int) -> None:
        """The sidecar has taken what came up to `version`."""
        self._acked = max(self._acked, min(version, self.version))
        if self._due or self._settings_due:
            self.wake()

    @property
    def acked(self) -> int:
        return self._acked

    def close(self) -> None:
        for topic in self._texts_on:
            self._hub.stop_listening(topic, self)
        self._hub.stop_listening(settings_topic(self.uid), self)
        self._hub.closed(self)
        self._keys.clear()

    async def take(self) -> bytes | None:
        """The next message for the stream, encoded, or None once the pod is gone."""
        while True:
            await self._wake.wait()
            collected = self._collect()
            if self.pod_gone:
                return None
            if collected is not None:
                self.version += 1
            nothing_due = not self._due and not self._settings_due
            if nothing_due or self.version - self._acked >= WINDOW:
                self._wake.clear()
            if collected is not None:
                return message(self.version, *collected)

    def _collect(self) -> tuple[list[Encoded], bytes | None, list[str]] | None:
        settings = None
        if self._settings_due:
            self._settings_due = False
            said = self._hub.answers.settings(self.uid)
            if said is None:
                self.pod_gone = True
                return None
            encoded = said.SerializeToString(deterministic=True)
            if encoded != self._told_settings:
                self._told_settings = settings = encoded
        entries: list[Encoded] = []
        same: list[str] = []
        size = len(settings or b"")
        while self._due and size < MAX_RESPONSE_BYTES:
            text = next(iter(self._due))
            del self._due[text]
            entry = self._hub.answers.entry(self._keys[text])
            if self._told.get(text) == entry.digest:
                if text in self._held:
                    same.append(text)
                    size += len(text)
            else:
                self._told[text] = entry.digest
                entries.append(entry)
                size += len(entry.framed)
            self._held.discard(text)
        if entries or same or settings is not None:
            return entries, settings, same
        return None


class Hub:
    """Hands changes of topics to the subscriptions that listen to them."""

    def __init__(self, answers: Answers) -> None:
        self.answers = answers
        self._listeners: defaultdict[str, set[Subscription]] = defaultdict(set)
        self._to_wake: set[Subscription] = set()
        self._timer: asyncio.TimerHandle | None = None

    def open(self, uid: str) -> Subscription:
        """A subscription for the pod `uid`; its settings are due at once."""
        subscription = Subscription(self, uid)
        self.listen(settings_topic(uid), subscription)
        return subscription

    @property
    def listeners(self) -> int:
        """How many topics somebody listens to."""
        return len(self._listeners)

    def changed(self, topics: Topics) -> None:
        self.answers.forget(topics)
        for topic in self._heard_of(topics):
            for subscription in self._listeners.get(topic, ()):
                subscription.changed(topic)
                self._to_wake.add(subscription)
        if self._to_wake and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(COALESCE_S, self._ring)

    def _heard_of(self, topics: Topics) -> Topics:
        """With every address that somebody listens to in place of the range that it lies in."""
        ranges = PodRanges()
        for topic in topics:
            if (network := topic_network(topic)) is not None:
                ranges.place_network(network, True)
        if not ranges.networks:
            return topics
        heard = (key for key in self._listeners if key[:1].isdigit() or ":" in key[1:])
        return topics | {key for key in heard if is_ip(key) and ranges.with_address(key)}

    def _ring(self) -> None:
        self._timer = None
        ringing, self._to_wake = self._to_wake, set()
        for subscription in ringing:
            subscription.wake()

    def closed(self, subscription: Subscription) -> None:
        self._to_wake.discard(subscription)

    def listen(self, topic: str, subscription: Subscription) -> None:
        self._listeners[topic].add(subscription)

    def stop_listening(self, topic: str, subscription: Subscription) -> None:
        listeners = self._listeners.get(topic)
        if listeners is not None:
            listeners.discard(subscription)
            if not listeners:
                del self._listeners[topic]

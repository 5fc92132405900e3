"""Who asked for what, and what each has still to be told.

A change marks the key as due for those who asked for it; a key that is due twice is told once, as
it is then. So a slow reader costs at most one mark per key that it asked for, and a burst of
changes costs each reader one message.
"""

import asyncio
from collections import defaultdict
from collections.abc import Iterable

from proto import registry_pb2 as pb
from registry.answers import Answers
from registry.keys import Key
from registry.model import Topics, settings_topic

MAX_KEYS = 10_000
"""Per stream: a pod that talks to more than this many addresses is refused more."""
COALESCE_S = 0.01
MAX_RESPONSE_BYTES = 1 << 20


class KeysExhausted(Exception):
    """The stream asks for more keys than one pod may."""

    reason = "too_many_keys"


class Subscription:
    """What one stream asked for. `take` waits until something is due and returns it."""

    def __init__(self, hub: "Hub", uid: str) -> None:
        self._hub, self.uid = hub, uid
        self._keys: dict[str, Key] = {}
        self._texts_on: defaultdict[str, set[str]] = defaultdict(set)
        self._sent: dict[str, pb.Entry] = {}
        self._due: dict[str, None] = {}
        self._settings_due = True
        self._sent_settings: pb.PodSettings | None = None
        self._wake = asyncio.Event()
        self._wake.set()
        self._timer: asyncio.TimerHandle | None = None
        self.version = 0
        self.acked = 0
        self.pod_gone = False

    def ask(self, keys: Iterable[Key]) -> None:
        """Answer `keys` at once and tell their changes. Raises KeysExhausted beyond MAX_KEYS."""
        for key in keys:
            if key.text not in self._keys and len(self._keys) >= MAX_KEYS:
                raise KeysExhausted(f"more than {MAX_KEYS} keys")
            self._keys[key.text] = key
            self._texts_on[key.topic].add(key.text)
            self._sent.pop(key.text, None)  # whoever asks again is answered again
            self._due[key.text] = None
            self._hub.listen(key.topic, self)
        self._wake.set()

    def drop(self, texts: Iterable[str]) -> None:
        """Tell no more of the keys spelled so; unknown ones are ignored."""
        for text in texts:
            if (key := self._keys.pop(text, None)) is not None:
                self._due.pop(text, None)
                self._sent.pop(text, None)
                self._texts_on[key.topic].discard(text)
                if not self._texts_on[key.topic]:
                    del self._texts_on[key.topic]
                    self._hub.stop_listening(key.topic, self)

    def changed(self, topic: str) -> None:
        """What is known of `topic` may differ now."""
        if topic == settings_topic(self.uid):
            self._settings_due = True
        for text in self._texts_on.get(topic, ()):
            self._due[text] = None
        if self._timer is None and not self._wake.is_set():
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(COALESCE_S, self._ring)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        for topic in self._texts_on:
            self._hub.stop_listening(topic, self)
        self._hub.stop_listening(settings_topic(self.uid), self)
        self._keys.clear()

    async def take(self) -> pb.DiscoverResponse | None:
        """The next message for the stream, or None once the pod is gone."""
        while True:
            await self._wake.wait()
            response = self._collect()
            if self.pod_gone:
                return None
            if not self._due and not self._settings_due:
                self._wake.clear()
            if response.entries or response.HasField("settings"):
                self.version += 1
                response.version = self.version
                return response

    def _ring(self) -> None:
        self._timer = None
        self._wake.set()

    def _collect(self) -> pb.DiscoverResponse:
        response = pb.DiscoverResponse()
        if self._settings_due:
            self._settings_due = False
            settings = self._hub.answers.settings(self.uid)
            if settings is None:
                self.pod_gone = True
                return response
            if settings != self._sent_settings:
                self._sent_settings = settings
                response.settings.CopyFrom(settings)
        size = 0
        while self._due and size < MAX_RESPONSE_BYTES:
            text = next(iter(self._due))
            del self._due[text]
            entry = self._hub.answers.entry(self._keys[text])
            if entry is self._sent.get(text) or entry == self._sent.get(text):
                continue
            self._sent[text] = entry
            response.entries.append(entry)
            size += entry.ByteSize()
        return response


class Hub:
    """Hands changes of topics to the subscriptions that listen to them."""

    def __init__(self, answers: Answers) -> None:
        self.answers = answers
        self._listeners: defaultdict[str, set[Subscription]] = defaultdict(set)

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
        for topic in topics:
            for subscription in self._listeners.get(topic, ()):
                subscription.changed(topic)

    def listen(self, topic: str, subscription: Subscription) -> None:
        self._listeners[topic].add(subscription)

    def stop_listening(self, topic: str, subscription: Subscription) -> None:
        listeners = self._listeners.get(topic)
        if listeners is not None:
            listeners.discard(subscription)
            if not listeners:
                del self._listeners[topic]

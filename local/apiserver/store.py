"""The objects, their versions, and a bounded history for watches. No I/O, no waiting.

One counter numbers every change of the cluster, as etcd's revision does, so a resourceVersion can
be compared across kinds. Stored objects are never changed in place: an update stores a new one.
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from local.errors import ApiError
from local.objects import Object, name_of, namespace_of

HISTORY = 4000
"""Changes that a watch can still catch up on; older ones answer 410 Gone."""

EventType = Literal["ADDED", "MODIFIED", "DELETED"]
Key = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Event:
    """One change. `before` is what it replaced, so a watch with a selector knows what left it."""

    version: int
    key: Key
    type: EventType
    object: Object
    before: Object | None


Listener = Callable[[Event], None]


class Store:
    """Objects by kind, namespace and name. Listeners are called at once, in order."""

    def __init__(self, history: int = HISTORY) -> None:
        self._objects: dict[Key, dict[tuple[str, str], Object]] = {}
        self._history: deque[Event] = deque(maxlen=history)
        self._listeners: dict[int, Listener] = {}
        self._next_listener = 0
        self.version = 1

    def get(self, key: Key, namespace: str, name: str) -> Object | None:
        return self._objects.get(key, {}).get((namespace, name))

    def select(self, key: Key, namespace: str = "") -> list[Object]:
        """Every object of a kind, of one namespace or of all, by namespace and name."""
        found = sorted(self._objects.get(key, {}).items(), key=lambda item: item[0])
        return [obj for (ns, _), obj in found if namespace in ("", ns)]

    def kinds(self) -> list[Key]:
        return list(self._objects)

    def add(self, key: Key, obj: Object) -> Object:
        """Store a new object; raises ApiError AlreadyExists."""
        where = namespace_of(obj), name_of(obj)
        if where in self._objects.get(key, {}):
            raise ApiError(409, "AlreadyExists", f'{key[1]} "{where[1]}" already exists')
        return self._put(key, where, obj, "ADDED", None)

    def replace(self, key: Key, obj: Object) -> Object:
        """Store a new version of an object; one equal to the old changes nothing.

        Raises ApiError NotFound, or Conflict if `obj` carries a resourceVersion that is not the
        present one (optimistic concurrency).
        """
        where = namespace_of(obj), name_of(obj)
        old = self._objects.get(key, {}).get(where)
        if old is None:
            raise ApiError(404, "NotFound", f'{key[1]} "{where[1]}" not found')
        claimed = obj["metadata"].get("resourceVersion")
        present = old["metadata"]["resourceVersion"]
        if claimed not in (None, "", present):
            raise ApiError(
                409,
                "Conflict",
                f'Operation cannot be fulfilled on {key[1]} "{where[1]}": the object has been '
                "modified; please apply your changes to the latest version and try again",
            )
        same = {**obj, "metadata": {**obj["metadata"], "resourceVersion": present}}
        if same == old:
            return old
        return self._put(key, where, obj, "MODIFIED", old)

    def remove(self, key: Key, namespace: str, name: str) -> Object | None:
        """Take an object away; returns its last state, or None if there was none."""
        old = self._objects.get(key, {}).pop((namespace, name), None)
        if old is None:
            return None
        self.version += 1
        metadata = {**old["metadata"], "resourceVersion": str(self.version)}
        gone = {**old, "metadata": metadata}
        self._tell(Event(self.version, key, "DELETED", gone, old))
        return gone

    def since(self, key: Key, version: int) -> Iterator[Event]:
        """The changes to a kind after `version`; raises ApiError Expired if they are forgotten."""
        oldest = self._history[0].version if self._history else self.version + 1
        forgot = len(self._history) == self._history.maxlen and version < oldest - 1
        if forgot or version > self.version:
            raise ApiError(410, "Expired", f"too old resource version: {version} ({oldest})")
        return (e for e in list(self._history) if e.version > version and e.key == key)

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Call `listener` with every change from now on; returns what ends that."""
        self._next_listener += 1
        number = self._next_listener
        self._listeners[number] = listener
        return lambda: void(self._listeners.pop(number, None))

    def _put(
        self,
        key: Key,
        where: tuple[str, str],
        obj: Object,
        kind: EventType,
        before: Object | None,
    ) -> Object:
        self.version += 1
        metadata = {**obj["metadata"], "resourceVersion": str(self.version)}
        stored = {**obj, "metadata": metadata}
        self._objects.setdefault(key, {})[where] = stored
        self._tell(Event(self.version, key, kind, stored, before))
        return stored

    def _tell(self, event: Event) -> None:
        self._history.append(event)
        for listener in list(self._listeners.values()):
            listener(event)


def void(_: object) -> None:
    """Turn an expression into nothing, for callbacks that return None."""

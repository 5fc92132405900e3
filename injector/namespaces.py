"""Finds namespaces: watched, and read once more from the API server when the watch has none."""

from kit.checked import LABEL, Fields, must
from kit.informer import Informer
from kit.kube import Kube, KubeError, Object

PATH = "/api/v1/namespaces"


def _trim(raw: Object) -> Object:
    """Texts by name; what is none is left out. Raises Unreadable for a namespace without a name."""
    fields = Fields()
    metadata = fields.mapping(raw.get("metadata"), "metadata")
    name = metadata.get("name")
    kept = {
        key: {k: v for k, v in fields.mapping(metadata.get(key), key).items() if isinstance(v, str)}
        for key in ("labels", "annotations")
    }
    named = must(fields.name(name, "metadata.name", LABEL), "metadata.name", name)
    return {"metadata": {"name": named, **kept}}


def _unheard(_key: str, _old: Object | None, _new: Object | None) -> None:
    """Nobody waits for changes: whoever asks gets the present state."""


class Namespaces:
    """The labels and annotations of every namespace."""

    def __init__(self, kube: Kube) -> None:
        self._kube = kube
        self._informer = Informer(kube, PATH, _unheard, _trim)

    @property
    def synced(self) -> bool:
        return self._informer.synced.is_set()

    async def wait_synced(self) -> None:
        await self._informer.synced.wait()

    async def run(self) -> None:
        await self._informer.run()

    async def get(self, name: str, fresh: bool = False) -> Object | None:
        """The namespace, or None if there is none. Raises KubeError when that cannot be known.

        A namespace made or labelled a moment ago may not have reached the watch yet: one that is
        not there is asked for, and `fresh` asks in any case.
        """
        known = None if fresh else self._informer.items.get(f"/{name}")
        if known is not None:
            return known
        try:
            return _trim(await self._kube.get(f"{PATH}/{name}"))
        except KubeError as error:
            if error.status == 404:
                return None
            raise

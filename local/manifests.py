"""Reads manifests: one or more YAML documents, each an object with its kind and name.

A problem is one line that names the file, the document and the field.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kit.yaml_text import YamlRefused, documents
from local.errors import BadManifest
from local.objects import Object

_FIRST = ("Namespace", "CustomResourceDefinition", "ServiceAccount", "ConfigMap", "Secret")


@dataclass(frozen=True, slots=True)
class Manifest:
    """One object and where it was read."""

    object: Object
    source: str

    @property
    def kind(self) -> str:
        return str(self.object["kind"])


def read(source: str | Path) -> list[Manifest]:
    """The objects of a file, a directory of *.yaml files, or YAML text (anything with a newline).

    Raises BadManifest.
    """
    if isinstance(source, str) and "\n" in source:
        return _some(parse(source, "manifest"), "manifest")
    path = Path(source)
    try:
        files = sorted(path.glob("*.y*ml")) if path.is_dir() else [path]
        texts = [(str(file), file.read_text()) for file in files]
    except OSError as e:
        raise BadManifest(f"{path}: {e.strerror}") from e
    except UnicodeDecodeError as e:
        raise BadManifest(f"{path}: not UTF-8 text") from e
    if not files:
        raise BadManifest(f"{path}: no *.yaml or *.yml file in this directory")
    return _some([m for name, text in texts for m in parse(text, name)], str(path))


def _some(found: list[Manifest], name: str) -> list[Manifest]:
    if not found:
        raise BadManifest(f"{name}: no object in it")
    return found


def parse(text: str, name: str) -> list[Manifest]:
    """The objects of YAML text; `name` is what messages call it."""
    try:
        read = documents(text)
    except YamlRefused as e:
        where = f"{name}:{e.line}" if e.line else name
        raise BadManifest(f"{where}: not YAML: {e}") from e
    found = []
    for number, document in enumerate(read, 1):
        where = f"{name} (document {number})" if len(read) > 1 else name
        found += [Manifest(obj, where) for obj in _objects(document, where)]
    return found


def _objects(document: Any, where: str) -> list[Object]:
    if document is None:
        return []
    if not isinstance(document, dict):
        raise BadManifest(f"{where}: must be a map with apiVersion, kind and metadata")
    if document.get("kind") == "List":
        items = document.get("items")
        if not isinstance(items, list):
            raise BadManifest(f"{where}: items must be a list")
        return [obj for item in items for obj in _objects(item, where)]
    for field in ("apiVersion", "kind"):
        if not isinstance(document.get(field), str) or not document[field]:
            raise BadManifest(f"{where}: {field} is missing")
    metadata = document.get("metadata") or {}
    if not isinstance(metadata, dict):
        raise BadManifest(f"{where}: metadata must be a map")
    if not isinstance(metadata.get("name") or metadata.get("generateName"), str):
        raise BadManifest(f"{where}: metadata.name is missing")
    return [document]


def in_order(manifests: Iterable[Manifest]) -> list[Manifest]:
    """Namespaces and what others refer to first; otherwise as they came."""
    return sorted(
        manifests,
        key=lambda m: _FIRST.index(m.kind) if m.kind in _FIRST else len(_FIRST),
    )

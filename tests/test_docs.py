"""What the documents list is what the code knows."""

import re
from dataclasses import fields
from pathlib import Path

import pytest

from injector.annotations import AnnotationRefused, PodSettings, read_settings

ROOT = Path(__file__).parent.parent
_ROW = re.compile(r"^\| `([a-z-]+)` \|[ ]*(?:`([^`]*)`|([^|]*?))[ ]*\| ([^|]+) \|", re.MULTILINE)
_EXAMPLE = re.compile(r"`([^`]+)`")
_OTHER_DEFAULTS = {"shutdown-grace-period", "workers"}
"""The sidecar's own, so the injector writes nothing."""


def rows() -> dict[str, tuple[str, str]]:
    text = (ROOT / "docs/annotations.md").read_text().partition("## How a pod's sidecar")[2]
    return {name: (given or other.strip(), form) for name, given, other, form in _ROW.findall(text)}


def test_the_annotations_page_lists_every_annotation_with_its_default() -> None:
    known = {field.name.replace("_", "-"): field.default for field in fields(PodSettings)}
    listed = rows()
    assert set(listed) == set(known)
    for name, (default, _) in listed.items():
        if name not in _OTHER_DEFAULTS:
            assert default == known[name], name


@pytest.mark.parametrize("name", sorted(rows()))
def test_each_example_on_the_annotations_page_is_taken(name: str) -> None:
    for example in _EXAMPLE.findall(rows()[name][1]):
        try:
            read_settings({f"config.podlink.dev/{name}": example}, {})
        except AnnotationRefused as e:
            pytest.fail(str(e))


@pytest.mark.parametrize(
    "page", sorted(p for p in ROOT.glob("*.md")) + sorted(ROOT.glob("docs/*.md"))
)
def test_every_relative_link_of_a_page_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / target).exists(), target

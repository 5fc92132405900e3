"""Files that somebody hands to a command: one clear line for whatever is wrong, never a traceback."""

from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from cli.__main__ import podlink as main
from kit.yaml_text import MAX_VALUES, YamlRefused, documents
from local import manifests
from local.errors import BadManifest

DEEP = 5000
LAUGHS = "a0: &a0 [x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12)
)
FILES = {
    "bad UTF-8": b"kind: \xff\xfe",
    "NUL": b"kind: \x00",
    "deep": b"[" * DEEP + b"]" * DEEP,
    "deep and open": b"[" * DEEP,
    "deep maps": b'{"a":' * DEEP + b"1" + b"}" * DEEP,
    "deep pod": b"apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: " + b"[" * 80 + b"]" * 80,
    "a month that is none": b"kind: Pod\nat: 2026-13-45\n",
    "a list for a key": b"? [a, b]\n: c\n",
    "a tag": b"kind: !!python/object/apply:os.system [id]\n",
    "laughs": LAUGHS.encode(),
    "an alias of itself": b"kind: &a [*a]\n",
    "containers: 5": b"apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {containers: 5}\n",
    "operator: {}": b"apiVersion: podlink.dev/v1alpha1\nkind: LinkPolicy\n"
    b"metadata: {name: a, namespace: b}\n"
    b"spec: {selector: {matchExpressions: [{key: a, operator: {}}]}}\n",
    "mode: []": b"apiVersion: podlink.dev/v1alpha1\nkind: LinkPolicy\n"
    b"metadata: {name: a, namespace: b}\nspec: {mode: []}\n",
    "numbers for keys": b"apiVersion: podlink.dev/v1alpha1\nkind: LinkPolicy\n"
    b"metadata: {name: a, namespace: b}\nspec: {selector: {matchLabels: {1: 2, a: b}}}\n",
    "empty": b"",
    "a huge number": b"kind: " + b"9" * 5000,
    "a template that is text": b"apiVersion: apps/v1\nkind: Deployment\nspec: {template: x}\n",
    "metadata: 5": b"apiVersion: v1\nkind: Pod\nmetadata: 5\nspec: {containers: []}\n",
    "a list of 5": b"kind: List\nitems: 5\n",
    "a list in a list": b"kind: PodList\nitems: " + b"[" * 70 + b"]" * 70,
}
COMMANDS = (
    ["policy", "check", "-f", "FILE"],
    ["inject", "--offline", "-f", "FILE"],
    ["report", "verify", "--bundle", "FILE", "FILE"],
    ["check", "--kubeconfig", "FILE"],
)


@pytest.mark.attack_row(50)
@pytest.mark.parametrize("command", COMMANDS, ids=lambda argv: " ".join(argv[:2]))
@pytest.mark.parametrize("name", FILES)
def test_a_command_says_in_one_line_what_is_wrong_with_a_file(
    command: list[str], name: str, tmp_path: Path
) -> None:
    path = tmp_path / "file"
    path.write_bytes(FILES[name])
    for stdin in (False, True):
        if stdin and "-f" not in command:
            continue
        argv = [("-" if stdin else str(path)) if word == "FILE" else word for word in command]
        done = CliRunner().invoke(main, argv, input=FILES[name] if stdin else None)
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exc_info
        assert done.exit_code in (0, 1, 2)
        if done.exit_code:
            said = [line for line in done.output.splitlines() if line.startswith("Error: ")]
            assert len(said) == 1, done.output
            assert said[0].isprintable()
            assert len(said[0]) < 600


@pytest.mark.attack_row(50)
@pytest.mark.parametrize("name", FILES)
def test_local_apply_says_in_one_line_what_is_wrong_with_a_manifest(
    name: str, tmp_path: Path
) -> None:
    path = tmp_path / "file.yaml"
    path.write_bytes(FILES[name])
    try:
        manifests.read(path)
    except BadManifest as e:
        assert "\n" not in str(e)
        assert len(str(e)) < 600


def test_an_alias_counts_as_what_it_stands_for() -> None:
    with pytest.raises(YamlRefused, match=str(MAX_VALUES)):
        documents(LAUGHS)
    assert documents("a: &a {x: 1}\nb: *a\nc: {<<: *a, y: 2}\n") == [
        {"a": {"x": 1}, "b": {"x": 1}, "c": {"x": 1, "y": 2}}
    ]


@given(st.text() | st.binary().map(lambda raw: raw.decode("latin-1")))
def test_no_text_whatever_ends_the_reader_otherwise(text: str) -> None:
    try:
        documents(text)
    except YamlRefused as e:
        assert "\n" not in str(e)

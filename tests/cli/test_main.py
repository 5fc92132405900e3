"""The `podlink` command itself: help is quick, errors are one line."""

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from cli.__main__ import COMMANDS, podlink
from local.supervisor import SOURCE_ROOT


def test_every_subcommand_can_be_loaded_and_has_help() -> None:
    for name in COMMANDS:
        done = CliRunner().invoke(podlink, [name, "--help"])
        assert done.exit_code == 0, done.output
        assert "Usage:" in done.output


def test_help_imports_no_subcommand() -> None:
    script = "import sys, cli.__main__ as m; m.podlink(['--help'], standalone_mode=False);"
    script += "sys.exit(any(n.startswith(('cli.local', 'local.')) for n in sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=SOURCE_ROOT, capture_output=True, check=False
    )
    assert done.returncode == 0


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["local", "get", "pods", "--name", "absent"], "no cluster 'absent' is running"),
        (["local", "up", "--name", "No Name"], "--name must be"),
        (["local", "up", "-f", "/no/such.yaml"], "/no/such.yaml: No such file"),
        (["local", "apply", "--name", "absent"], "no cluster 'absent'"),
        (["local", "up", "--publish", "80:x"], "--publish must be"),
        (["local", "get", "gadgets"], "unknown kind 'gadgets'"),
    ],
)
def test_a_mistake_is_answered_in_one_line(argv: list[str], message: str) -> None:
    done = CliRunner().invoke(podlink, argv)
    assert done.exit_code != 0
    last = done.output.strip().splitlines()[-1]
    assert last.startswith("Error: ")
    assert message in last


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "shop.yaml: no object in it"),
        ("# nothing yet\n---\n", "shop.yaml: no object in it"),
        ("apiVersion: v1\nkind: Pod\n", "shop.yaml: metadata.name is missing"),
        (None, "no *.yaml or *.yml file in this directory"),
    ],
)
def test_a_manifest_without_objects_is_named(
    tmp_path: Path, content: str | None, message: str
) -> None:
    source = tmp_path / "shop.yaml" if content is not None else tmp_path
    if content is not None:
        source.write_text(content)
    done = CliRunner().invoke(podlink, ["local", "up", "--name", "absent", "-f", str(source)])
    assert done.exit_code == 1
    assert done.output.startswith(f"Error: {tmp_path}")
    assert message in done.output
    assert len(done.output.splitlines()) == 1

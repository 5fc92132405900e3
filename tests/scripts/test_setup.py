"""What the words of the Makefile find missing, what they do about it, and what they say.

The scripts run as they are, in a tree of their own with a table of made-up packages, on a PATH of
stand-ins for apt-get and sudo that write down what they are asked.
"""

import functools
import hashlib
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from scripts import environments
from scripts.environments import Environment, as_uv, how_far
from tests.patience import PATIENCE_S

ROOT = Path(__file__).resolve().parents[2]
TABLE = """
# a comment
python3-venv  *           -             # always
frobnicate    demo,test   frob          # a program
either        demo        /nowhere/*|grault  # a file or a program
widget        test        widget
niceties      demo?       nice-one      # can do without
"""
FAKE_APT = """#!/bin/sh
echo "$(basename "$0") $*" >> "$ASKED"
case "$*" in
*" update"*)
    [ -z "${OFFLINE:-}" ] || echo "W: Temporary failure resolving 'archive.invalid'" ;;
*" install "*)
    [ -z "${REFUSE:-}" ] || { echo "E: dpkg was interrupted"; exit 100; }
    echo "dlstatus:1:50.0:Retrieving"
    for package; do
        case $package in
        frobnicate) cp /bin/true "$BIN/frob" ;;
        either) cp /bin/true "$BIN/grault" ;;
        esac
    done ;;
esac
"""
FAKE_POLICY = """#!/bin/sh
case " ${ABSENT:-} " in
*" $2 "*) echo "  Candidate: (none)" ;;
*) echo "  Candidate: 1" ;;
esac
"""
FAKE_ID = "#!/bin/sh\necho ${FAKE_UID:-0}\n"
FAKE_SUDO = """#!/bin/sh
[ -n "${SUDO_OPEN:-}" ] || exit 1
shift
exec "$@"
"""
FAKE_ENVIRONMENTS = """
import sys
if sys.argv[1] == "--can": sys.exit(0)
if sys.argv[1] == "--count": print(2)
else: print("environments", *sys.argv[1:])
"""


@dataclass
class Tree:
    """A tree with the scripts, and what was asked of the stand-ins."""

    path: Path
    env: dict[str, str] = field(default_factory=dict)

    def setup(self, word: str = "demo", **env: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            ["/bin/sh", self.path / "scripts/setup.sh", word],
            env={**self.env, **env},
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=PATIENCE_S,
        )

    @property
    def asked(self) -> list[str]:
        file = self.path / "asked"
        lines = file.read_text().splitlines() if file.exists() else []
        return [
            " ".join(w for w in line.split() if w[0] != "-" and "::" not in w) for line in lines
        ]

    def have(self, *programs: str) -> None:
        for program in programs:
            shutil.copy("/bin/true", self.path / "bin" / program)


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    for folder in ("scripts", "requirements", "bin"):
        (tmp_path / folder).mkdir()
    for script in ("setup.sh", "needs.sh"):
        shutil.copy(ROOT / "scripts" / script, tmp_path / "scripts")
    (tmp_path / "scripts/environments.py").write_text(FAKE_ENVIRONMENTS)
    (tmp_path / "requirements/debian.txt").write_text(TABLE)
    fakes = {
        "apt-get": FAKE_APT,
        "apt-cache": FAKE_POLICY,
        "id": FAKE_ID,
        "sudo": FAKE_SUDO,
    }
    for name, text in fakes.items():
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "bin/python3").symlink_to(sys.executable)
    env = {
        "PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin",
        "ASKED": str(tmp_path / "asked"),
        "BIN": str(tmp_path / "bin"),
        "TMPDIR": str(tmp_path),
    }
    return Tree(tmp_path, env)


def test_root_has_what_lacks_installed_and_is_told_in_one_line(tree: Tree) -> None:
    done = tree.setup()
    assert done.returncode == 0, done.stderr
    assert tree.asked == [
        "apt-get update",
        "apt-get install frobnicate either niceties",
    ]
    assert done.stderr == (
        "[1/3] installing the packages frobnicate either niceties "
        "(PODLINK_NO_INSTALL=1 only names them)\n"
    )
    assert done.stdout == "environments demo 1\n"


def test_where_nothing_lacks_nothing_is_said_or_asked(tree: Tree) -> None:
    tree.have("frob", "grault", "nice-one")
    done = tree.setup()
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "environments demo 0\n")
    assert tree.asked == []


@pytest.mark.parametrize(
    ("env", "typed"),
    [
        ({"PODLINK_NO_INSTALL": "1"}, "apt-get install"),
        ({"FAKE_UID": "1000"}, "sudo apt-get install"),
        ({"FAKE_UID": "1000", "SUDO_OPEN": "1", "PODLINK_NO_INSTALL": "1"}, "sudo apt-get install"),
    ],
)
def test_who_may_not_install_is_told_what_to_type(
    tree: Tree, env: dict[str, str], typed: str
) -> None:
    done = tree.setup(**env)
    assert done.returncode == 1
    assert done.stderr == (
        f"make demo: needs packages that are not installed: {typed} frobnicate either\n"
    )
    assert (tree.asked, done.stdout) == ([], "")


def test_sudo_without_a_password_installs(tree: Tree) -> None:
    done = tree.setup(FAKE_UID="1000", SUDO_OPEN="1")
    assert done.returncode == 0, done.stderr
    assert tree.asked[1:] == ["apt-get install frobnicate either niceties"]


def test_what_can_be_done_without_stops_nobody(tree: Tree) -> None:
    tree.have("frob", "grault")
    done = tree.setup(FAKE_UID="1000")
    assert (done.returncode, done.stderr) == (0, "")
    done = tree.setup(REFUSE="1")
    assert (done.returncode, done.stdout) == (0, "environments demo 1\n")
    (tree.path / "asked").unlink()
    done = tree.setup(ABSENT="niceties")
    assert (done.returncode, done.stderr, tree.asked) == (0, "", [])


def test_a_package_that_no_archive_has_is_named_before_any_is_installed(tree: Tree) -> None:
    done = tree.setup(ABSENT="either")
    assert done.returncode == 1
    assert tree.asked == ["apt-get update"]
    assert done.stderr.splitlines()[1] == (
        "make demo: no package archive of this system has either (on Ubuntu it may be in universe: "
        "add-apt-repository universe)"
    )


def test_offline_is_one_line(tree: Tree) -> None:
    done = tree.setup(OFFLINE="1", ABSENT="frobnicate either")
    assert done.returncode == 1
    assert done.stderr.splitlines()[1:] == [
        "make demo: the package archive cannot be reached: go online, or have an administrator run: "
        "apt-get install frobnicate either"
    ]


def test_what_apt_refuses_is_told_in_its_own_words(tree: Tree) -> None:
    done = tree.setup(REFUSE="1")
    assert done.returncode == 1
    assert "failed: dpkg was interrupted (all it said: " in done.stderr.splitlines()[1]
    assert (tree.path / "podlink-apt.log").exists()


def test_another_word_needs_other_packages(tree: Tree) -> None:
    done = tree.setup("test", PODLINK_NO_INSTALL="1")
    assert done.stderr.endswith("apt-get install frobnicate widget\n")
    assert tree.setup("venv").stdout == "environments venv 0\n"


def test_a_python_that_is_too_old_is_named_with_the_way_out(tree: Tree) -> None:
    old = tree.path / "bin/python3"
    old.unlink()
    old.write_text('#!/bin/sh\n[ "$1" = -V ] && { echo "Python 3.9.2"; exit 0; }\nexit 1\n')
    old.chmod(0o755)
    for newer in ("python3.11", "python3.12", "python3.13", "python3.14"):
        (tree.path / "bin" / newer).write_text("#!/bin/sh\nexit 1\n")
        (tree.path / "bin" / newer).chmod(0o755)
    done = tree.setup()
    assert done.returncode == 1
    assert done.stderr == (
        "make demo: needs Python 3.11 or newer, python3 is Python 3.9.2: install a newer one with its "
        "venv module (python3.12, python3.12-venv) and say PYTHON=python3.12 make demo\n"
    )


def test_a_python_under_another_name_is_found(tree: Tree) -> None:
    (tree.path / "bin/python3").unlink()
    broken = tree.path / "bin/python3"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    (tree.path / "bin/python3.14").symlink_to(sys.executable)
    tree.have("frob", "grault", "nice-one")
    assert tree.setup().stdout == "environments demo 0\n"


def test_every_package_of_the_table_says_how_it_is_found() -> None:
    for line in (ROOT / "requirements/debian.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            package, words, shown, mark = line.split()[:4]
            assert mark == "#", line
            assert shown != "-" or package == "python3-venv", line
            for word in words.split(","):
                assert word.rstrip("?") in {*environments.WORDS, "*"}, line


def test_the_demo_installs_a_part_of_what_development_does() -> None:
    def pins(name: str) -> set[str]:
        text = (ROOT / "requirements" / name).read_text()
        return {line.split(" ;")[0].strip(" \\") for line in text.splitlines() if "==" in line}

    assert pins("demo.lock") < pins("dev.lock")


# The environments


@pytest.fixture
def env(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Environment:
    monkeypatch.setattr(environments, "ROOT", tmp_path)
    monkeypatch.setattr(environments, "LOCKS", tmp_path / "requirements")
    monkeypatch.delenv("PYTHON", raising=False)
    (tmp_path / "requirements").mkdir()
    (tmp_path / "pyproject.toml").write_text("")
    for lock in ("demo.lock", "dev.lock"):
        (tmp_path / "requirements" / lock).write_text(f"{lock}==1\n")
    made = Environment(".venv", "demo.lock", ("dev.lock",))
    (tmp_path / ".venv/bin").mkdir(parents=True)
    made.python.symlink_to(sys.executable)
    return made


def _stamped(env: Environment, lock: str = "demo.lock", **changed: object) -> bool:
    """Whether an environment with such a stamp counts as ready."""
    said: dict[str, object] = {
        "path": str(env.path),
        "python": ".".join(map(str, sys.version_info[:2])),
        "locks": {lock: environments._digest(lock)},
    }
    (env.path / ".ready").write_text(json.dumps(said | changed))
    return environments.is_ready(env, environments.stamp(env))


def test_a_finished_environment_is_ready(env: Environment) -> None:
    assert _stamped(env)
    assert _stamped(env, "dev.lock")  # which holds all of the demo's


def test_a_half_made_environment_is_made_anew(env: Environment) -> None:
    assert environments.stamp(env) is None
    (env.path / ".ready").write_text('{"path": ')
    assert environments.stamp(env) is None


@pytest.fixture
def index(env: Environment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package index that has a uv, and a lock file that knows it; the wheel is what is returned."""
    served = tmp_path / "simple/uv"
    served.mkdir(parents=True)
    wheel = served / f"uv-1-py3-none-manylinux_2_17_{os.uname().machine}.whl"
    with zipfile.ZipFile(wheel, "w") as packed:
        packed.writestr("uv-1.data/scripts/uv", "#!/bin/sh\necho uv 1\n")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    hashes = {"hashes": {"sha256": digest}}
    other = {"filename": "uv-1-py3-none-win32.whl", "url": "no", **hashes}
    listed = {"files": [other, {"filename": wheel.name, "url": wheel.name, **hashes}]}
    (served / "index.html").write_text(json.dumps(listed))
    lock = tmp_path / "requirements/demo.lock"
    lock.write_text(f"uv==1 \\\n    --hash=sha256:{digest}\n")
    handler = functools.partial(QuietHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{server.server_port}/simple/")
        yield wheel
        server.shutdown()
        thread.join()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


def test_without_the_venv_module_uv_is_fetched_by_its_hash(env: Environment, index: Path) -> None:
    environments._fetch_uv(env)
    assert subprocess.check_output([env.path / "bin/uv"], text=True) == "uv 1\n"


def test_a_uv_that_is_another_than_the_lock_says_is_not_taken(
    env: Environment, index: Path
) -> None:
    with zipfile.ZipFile(index, "a") as packed:
        packed.writestr("more", "evil")
    with pytest.raises(environments.Failed, match="not the one of the lock file"):
        environments._fetch_uv(env)
    assert not (env.path / "bin/uv").exists()


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/simple", "file:///etc", "not an address"])
def test_an_index_that_cannot_be_asked_is_one_line(
    env: Environment, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", url)
    with pytest.raises(environments.Failed, match="cannot fetch uv .* name a mirror"):
        environments._fetch_uv(env)


def test_only_the_venv_module_lacking_stops_nobody(tree: Tree) -> None:
    (tree.path / "scripts/environments.py").write_text(
        FAKE_ENVIRONMENTS.replace("sys.exit(0)", "sys.exit(1)")
    )
    tree.have("frob", "grault", "nice-one")
    done = tree.setup(FAKE_UID="1000")
    assert (done.returncode, done.stdout) == (0, "environments demo 0\n")
    (tree.path / "bin/frob").unlink()
    done = tree.setup(FAKE_UID="1000")
    assert done.stderr.endswith("sudo apt-get install python3-venv frobnicate\n")


def test_an_environment_that_was_moved_or_whose_python_has_gone_is_made_anew(
    env: Environment,
) -> None:
    assert not _stamped(env, path="/elsewhere/.venv")
    assert not _stamped(env, python="3.1")
    env.python.unlink()
    env.python.symlink_to("/nowhere/python3")
    assert not _stamped(env)


def test_another_python_may_be_asked_for(env: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHON", "python3")
    assert _stamped(env)
    monkeypatch.setattr(environments, "_version", lambda _: "3.11")
    monkeypatch.setattr(sys, "version_info", (3, 99, 0))
    assert not _stamped(env, python="3.11")


@pytest.mark.parametrize("changed", ["requirements/demo.lock", "pyproject.toml"])
def test_a_changed_lock_is_installed_anew(env: Environment, changed: str) -> None:
    assert _stamped(env)
    (environments.ROOT / changed).write_text("another")
    found = environments.stamp(env)
    assert found is not None  # what is there is kept
    assert not environments.is_ready(env, found)


def test_uv_looks_where_pip_is_told_to(tmp_path: Path) -> None:
    (tmp_path / "ours.pem").touch()
    options, settings = as_uv(
        "global.index-url='https://old.example/simple'\n"
        "install.index-url='https://me:secret@pip.example/simple'\n"
        "global.extra-index-url='https://one.example file:///nowhere/simple https://two.example'\n"
        f"global.find-links='{tmp_path}\\nhttps://files.example /nowhere/wheels'\n"
        f":env:.cert='{tmp_path}/ours.pem'\n"
        "global.no-index='true'\n"
        "download.index-url='https://not.example'\n"
    )
    assert settings == {
        "UV_DEFAULT_INDEX": "https://me:secret@pip.example/simple",
        "UV_INDEX": "https://one.example https://two.example",
        "SSL_CERT_FILE": f"{tmp_path}/ours.pem",
    }
    assert options[2:] == [
        "--find-links",
        str(tmp_path),
        "--find-links",
        "https://files.example",
        "--no-index",
    ]
    assert "secret" not in " ".join(options)  # anybody may read a command line


@pytest.mark.parametrize(
    ("said", "far"),
    [
        (b"\r\xe2\xa0\x99 Preparing packages... (3/52)\rPreparing packages... (17/52)", "17 of 52"),
        (b"Collecting aiohttp==3\n  Downloading aiohttp\nCollecting cffi==2\n", "2 of 52"),
        (b"Ignoring cel: markers\nCollecting cffi==2\n", "2 of 52"),
        (b"nothing of the kind", ""),
    ],
)
def test_how_far_it_is_comes_from_the_installers_own_words(said: bytes, far: str) -> None:
    assert how_far(said, said, 52) == far


@pytest.mark.parametrize(
    "said",
    [
        "WARNING: Retrying after NewConnectionError: [Errno -3] Temporary failure in name resolution\n"
        "ERROR: No matching distribution found for uv==0.9\n",
        "error: Failed to fetch: `https://index.invalid/simple/uv/`\n  Caused by: dns error: failed to "
        "lookup address information\n",
    ],
)
def test_an_index_out_of_reach_is_one_line_with_the_way_out(said: str) -> None:
    words = environments._why(["pip"], said)
    assert words.startswith("the Python package index cannot be reached")
    assert "\n" not in words


def test_another_failure_is_told_by_its_last_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    said = "Collecting x\nERROR: THESE PACKAGES DO NOT MATCH THE HASHES\n    Expected\n"
    words = environments._why(["/a/pip", "install"], said)
    log = tmp_path / f"podlink-setup-{os.getuid()}.log"
    assert words == (
        f"pip failed: ERROR: THESE PACKAGES DO NOT MATCH THE HASHES (all it said: {log})"
    )
    assert log.read_text() == said


def test_the_lines_of_one_package_carry_its_hashes() -> None:
    uv = "uv==2 \\\n    --hash=sha256:bb\n    # via b\n"
    lock = f"a==1 \\\n    --hash=sha256:aa\n{uv}uvloop==3 \\\n    --hash=sha256:cc\n"
    assert environments._only("uv", lock) == uv

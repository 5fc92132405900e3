"""The image as far as it can be judged without building it: its Dockerfile, and what it assembles."""

import hashlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

from scripts import assemble

ROOT = Path(__file__).resolve().parent.parent
DOCKERFILE = (ROOT / "Dockerfile").read_text()


def test_every_base_is_named_by_its_digest() -> None:
    bases = re.findall(r"^FROM (\S+)", DOCKERFILE, re.M)
    assert len(bases) == 2 and set(bases) == {"${BASE}@${BASE_DIGEST}"}
    assert re.search(r"^ARG BASE_DIGEST$", DOCKERFILE, re.M)  # no default: a build without it fails


def test_what_is_copied_is_there_and_let_through() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    copied = [
        source
        for words in re.findall(r"^COPY (?!--from)(.+)", DOCKERFILE, re.M)
        for source in words.split()[:-1]
    ]
    assert {source for source in copied if not (ROOT / source).exists()} == set()
    assert {source for source in copied if f"!{source}" not in ignored} == set()
    assert set(assemble.PACKAGES) <= set(copied)


def test_it_ends_as_an_ordinary_user_and_installs_by_hash() -> None:
    assert re.findall(r"^USER (\S+)", DOCKERFILE, re.M)[-1] == "65532:65532"
    assert "--require-hashes" in DOCKERFILE and "--only-binary=:all:" in DOCKERFILE
    for name in ("image.lock", "sidecar.lock"):
        lock = (ROOT / "requirements" / name).read_text()
        assert lock.count("==") and "--hash=sha256:" in lock


def test_python_itself_comes_compiled_as_our_packages_do() -> None:
    final = DOCKERFILE.rpartition("\nFROM ")[2]
    assert "compileall -q --invalidation-mode unchecked-hash" in final


def digest(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_the_same_sources_make_the_same_files(tmp_path: Path) -> None:
    made = []
    for name in ("a", "b"):
        target = tmp_path / name
        (target / "lib" / "some" / "tests").mkdir(parents=True)
        (target / "lib" / "some" / "__init__.py").write_text("x = 1\n")
        (target / "lib" / "some" / "types.pyi").write_text("x: int\n")
        assemble.assemble(target)
        made.append(digest(target))
        shutil.rmtree(target / "app" / "traces")
    assert made[0] == made[1]
    files = set(made[0])
    assert any(f.startswith("app/sidecar/__pycache__/app.") for f in files), "compiled beforehand"
    assert "lib/some/types.pyi" not in files and "sbom.spdx.json" in files
    assert not any("/tests/" in f for f in files)


def test_no_program_misses_the_typed_models_that_are_taken_off(tmp_path: Path) -> None:
    import kubernetes

    source = Path(kubernetes.__file__).parent
    for name in ("models/v1_pod.py", "models/__init__.py", "api/core_v1_api.py", "api/__init__.py"):
        (tmp_path / "kubernetes/aio/client" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source / "aio/client" / name, tmp_path / "kubernetes/aio/client" / name)
    assemble.prune(tmp_path)
    left = {path.name for path in tmp_path.rglob("*.py")}
    assert left == {"__init__.py"}
    programs = ("certs.server.app", "registry.app", "injector.app", "traces.app", "sidecar.app")
    names = "kubernetes.client", "kubernetes.aio.client"
    script = (
        "import importlib, sys\n"
        f"for name in {programs}: importlib.import_module(name)\n"
        f"parts = tuple(f'{{n}}.{{p}}.' for n in {names} for p in ('api', 'models'))\n"
        "print([name for name in sys.modules if name.startswith(parts)])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout == "[]\n"


def test_the_sbom_names_what_is_there() -> None:
    import certifi

    found = assemble.sbom(Path(certifi.__file__).parents[1])
    packages = found["packages"]
    assert isinstance(packages, list)
    names = {one["name"].lower() for one in packages}
    assert {"cryptography", "grpcio", "uvloop"} <= names
    assert found["spdxVersion"] == "SPDX-2.3"

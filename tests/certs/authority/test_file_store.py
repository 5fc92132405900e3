"""Keys in a file: nobody else may read it, and a reader finds the old or the new one, never half."""

import asyncio
import os
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from certs.authority.keyring import Keyring
from certs.authority.keys import AuthorityRefused, create_root
from certs.authority.store import FileStore, found_keyring
from kit.clock import utcnow
from tests.certs.running_ca import running_ca

TD = "cluster.local"


def fresh() -> Keyring:
    return Keyring(create_root(TD, utcnow()))


async def test_the_first_start_founds_it_and_the_second_finds_it(tmp_path: Path) -> None:
    store = FileStore(tmp_path / "keyring.json")
    first = await found_keyring(store, TD, utcnow)
    assert stat.S_IMODE((tmp_path / "keyring.json").stat().st_mode) == 0o600
    assert (await found_keyring(store, TD, utcnow)) == first


async def test_cas_that_start_together_agree_on_one_root(tmp_path: Path) -> None:
    stores = [FileStore(tmp_path / "keyring.json") for _ in range(8)]
    found = await asyncio.gather(*(found_keyring(s, TD, utcnow) for s in stores))
    assert len({f.version for f in found}) == 1


async def test_a_write_that_somebody_was_quicker_for_is_not_made(tmp_path: Path) -> None:
    store = FileStore(tmp_path / "keyring.json")
    read = await found_keyring(store, TD, utcnow)
    assert await store.replace(replace(read.keyring, order_done="1"), read.version)
    assert not await store.replace(replace(read.keyring, order_done="2"), read.version)
    now = await store.load()
    assert now is not None and now.keyring.order_done == "1"


@pytest.mark.fault_row("corrupt-state")
async def test_a_crash_in_the_middle_of_a_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "keyring.json"
    store = FileStore(path)
    read = await found_keyring(store, TD, utcnow)
    before = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        await store.replace(replace(read.keyring, generation=2), read.version)
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["keyring.json", "keyring.json.lock"]
    assert await store.replace(replace(read.keyring, generation=2), read.version)


async def test_it_is_on_the_disk_before_it_takes_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    real_fsync, real_rename = os.fsync, Path.rename

    def fsync(fd: int) -> None:
        done.append("fsync of " + ("folder" if stat.S_ISDIR(os.fstat(fd).st_mode) else "file"))
        real_fsync(fd)

    def rename(self: Path, to: Path) -> Path:
        done.append("rename")
        return real_rename(self, to)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "rename", rename)
    await FileStore(tmp_path / "keyring.json").create(fresh())
    assert done == ["fsync of file", "rename", "fsync of folder"]


@pytest.mark.fault_row("corrupt-state")
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"tls.key": 1}', b'{"tls.key": "x"}'])
async def test_a_damaged_file_is_refused_and_never_overwritten(
    tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "keyring.json"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(AuthorityRefused):
        await found_keyring(FileStore(path), TD, utcnow)
    assert path.read_bytes() == content


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o666])
async def test_a_file_that_others_may_read_is_refused_with_the_remedy(
    tmp_path: Path, mode: int
) -> None:
    path = tmp_path / "keyring.json"
    store = FileStore(path)
    await found_keyring(store, TD, utcnow)
    path.chmod(mode)
    with pytest.raises(AuthorityRefused, match="chmod 600"):
        await store.load()


async def test_a_symbolic_link_in_the_way_of_the_new_file_is_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "elsewhere"
    (tmp_path / f"keyring.json.{os.getpid()}.new").symlink_to(target)
    with pytest.raises(OSError):
        await FileStore(tmp_path / "keyring.json").create(fresh())
    assert not target.exists()


async def test_a_ca_signs_with_keys_from_a_file(tmp_path: Path) -> None:
    async with running_ca(tmp_path, store=FileStore(tmp_path / "keyring.json")) as ca:
        assert (await ca.sign(ca.fake.add_pod())).chain_der
        assert not [path for path in ca.fake.objects if "/secrets/" in path]

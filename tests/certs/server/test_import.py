"""A signer that somebody else renews: cert-manager, or anybody who writes a kubernetes.io/tls Secret."""

import base64
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from certs.authority.keys import KeyFiles
from certs.authority.store import SecretStore, found_keyring, read_secret_files
from certs.client.source import Svid
from certs.rotation import Phase
from kit.clock import utcnow
from tests.certs.authority.test_keyring import Parent
from tests.certs.client.test_ca import ready, run, until
from tests.certs.fake_kube import FakeKube
from tests.certs.running_ca import RunningCa, running_ca
from tests.certs.server.test_rotate import SECRET, believe_each_other, phase

PATH = "/api/v1/namespaces/podlink-system/secrets/mesh-signer"
ELSEWHERE = x509.NameConstraints([x509.UniformResourceIdentifier("example.org")], None)
"""Everything about such an intermediate fits together, but no peer believes what it signs."""


def secret(files: KeyFiles) -> dict[str, Any]:
    data = {"tls.key": files.tls_key, "tls.crt": files.tls_crt, "ca.crt": files.ca_crt}
    encoded = {name: base64.b64encode(raw).decode() for name, raw in data.items() if raw}
    return {"metadata": {"name": "mesh-signer"}, "type": "kubernetes.io/tls", "data": encoded}


async def founded(fake: FakeKube) -> None:
    """As the program does at its first start."""
    async with fake.running() as kube:
        first = read_secret_files(fake.objects[PATH], "Secret mesh-signer")
        await found_keyring(SecretStore(kube, "podlink-system"), "cluster.local", utcnow, first)


async def test_a_new_intermediate_under_the_same_root_signs_at_once(tmp_path: Path) -> None:
    fake, parent = FakeKube(), Parent()
    fake.put(PATH, secret(parent.intermediate()))
    await founded(fake)
    async with running_ca(tmp_path, fake, import_secret="mesh-signer") as ca:
        client = ca.client(fake.add_pod())
        async with run(client):
            old: Svid = await ready(client)
            before = ca.authority.issuer
            assert len(ca.authority.intermediates_der) == 1
            fake.put(PATH, secret(parent.intermediate("mesh signer 2")))
            await until(lambda: ca.authority.issuer != before)
            assert ca.authority.bundle.generation == 1, "the roots are the same"
            late = ca.client(fake.add_pod(name="late"), "late")
            async with run(late):
                believe_each_other(old, await ready(late))


@pytest.mark.fault_row("root-rotation")
async def test_a_new_root_behind_it_becomes_a_rotation_of_its_own(tmp_path: Path) -> None:
    fake = FakeKube()
    fake.put(PATH, secret(Parent().intermediate()))
    await founded(fake)
    async with running_ca(tmp_path, fake, import_secret="mesh-signer") as ca:
        client = ca.client(fake.add_pod())
        async with run(client):
            old = await ready(client)
            fake.put(PATH, secret(Parent().intermediate()))
            await until(lambda: phase(ca) is Phase.SIGNING)
            assert len(ca.authority.bundle.roots) == 2
            rotation = ca.server.keeper.keyring.rotation
            assert rotation is not None and rotation.by == "Secret mesh-signer"
            late = ca.client(fake.add_pod(name="late"), "late")
            async with run(late):
                fresh = await ready(late)
                believe_each_other(client.current, fresh)
                assert old.facts.serial != fresh.facts.serial


@pytest.mark.fault_row("corrupt-state")
@pytest.mark.parametrize(
    "kind",
    [
        "exchanged key",
        "cut",
        "no key",
        "gone",
        "leaf",
        "believed by nobody",
        "new and believed by nobody",
    ],
)
async def test_a_bad_replacement_is_refused_with_an_event_and_the_old_one_signs_on(
    tmp_path: Path, kind: str
) -> None:
    fake, parent = FakeKube(), Parent()
    good = parent.intermediate()
    fake.put(PATH, secret(good))
    await founded(fake)
    async with running_ca(tmp_path, fake, import_secret="mesh-signer") as ca:
        before, stored = ca.authority.issuer, fake.objects[SECRET]["data"]["tls.crt"]
        other = parent.intermediate()
        bad = {
            "exchanged key": KeyFiles(good.tls_key, other.tls_crt, other.ca_crt),
            "cut": KeyFiles(other.tls_key, other.tls_crt[:-60], other.ca_crt),
            "no key": KeyFiles(b"", other.tls_crt, other.ca_crt),
            "gone": None,
            "leaf": leaf_files(ca),
            "believed by nobody": parent.intermediate(extra=ELSEWHERE),
            "new and believed by nobody": Parent().intermediate(extra=ELSEWHERE),
        }[kind]
        fake.put(PATH, secret(bad) if bad else None)
        await until(lambda: any(e["reason"] == "CaKeysRefused" for e in fake.of_kind("events")))
        assert ca.authority.issuer == before
        assert fake.objects[SECRET]["data"]["tls.crt"] == stored
        assert (await ca.sign(fake.add_pod())).chain_der
        assert "PRIVATE" not in str(fake.of_kind("events"))
        fake.put(PATH, secret(other))
        await until(lambda: ca.authority.issuer != before)


def leaf_files(ca: RunningCa) -> KeyFiles:
    """A leaf of the very CA, with its key: it may not sign."""
    from tests.certs.forge import Forge

    forge = Forge()
    pair = forge.leaf()
    return KeyFiles(pair.key_pem, pair.chain_pem, forge.root_pem)


@pytest.mark.fault_row("root-rotation")
async def test_a_signer_that_brings_fewer_roots_drops_them_by_a_rotation_and_not_at_once(
    tmp_path: Path,
) -> None:
    """Roots change only with the bundle's generation: else every CA would refuse what is stored."""
    fake, parent, other = FakeKube(), Parent(), Parent()
    first = parent.intermediate()
    fake.put(PATH, secret(replace(first, ca_crt=first.ca_crt + other.intermediate().ca_crt)))
    await founded(fake)
    async with running_ca(tmp_path, fake, import_secret="mesh-signer") as ca:
        client = ca.client(fake.add_pod())
        async with run(client):
            old = await ready(client)
            assert len(ca.authority.bundle.roots) == 2
            fake.put(PATH, secret(parent.intermediate("mesh signer 2")))
            await until(lambda: phase(ca) is Phase.SIGNING)
            assert not any(e["reason"] == "CaKeysRefused" for e in fake.of_kind("events"))
            late = ca.client(fake.add_pod(name="late"), "late")
            async with run(late):
                believe_each_other(old, await ready(late))

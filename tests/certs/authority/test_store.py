"""One Secret, one root, whoever comes first."""

import asyncio
import base64
from typing import Any

import pytest

from certs.authority.keys import AuthorityRefused, create_root
from certs.authority.store import GENERATION_ANNOTATION, SecretStore, found_keyring
from kit.clock import utcnow
from kit.kube import Kube, KubeError
from tests.certs.fake_kube import FakeKube

SECRET = "/api/v1/namespaces/podlink-system/secrets/podlink-ca"
SECRETS = "/api/v1/namespaces/podlink-system/secrets"


async def found(kube: Kube) -> Any:
    stored = await found_keyring(SecretStore(kube, "podlink-system"), "cluster.local", utcnow)
    return stored.keyring.authority("cluster.local", utcnow())


@pytest.mark.fault_row("ca-restart")
async def test_the_second_start_finds_the_root_of_the_first() -> None:
    fake = FakeKube()
    async with fake.running() as kube:
        first, second = await found(kube), await found(kube)
    assert first.bundle == second.bundle
    assert fake.objects[SECRET]["type"] == "kubernetes.io/tls"
    assert fake.seen.count(("POST", SECRETS)) == 1


async def test_cas_that_start_together_agree_on_one_root() -> None:
    fake, all_asked = FakeKube(), asyncio.Event()

    async def hold() -> None:
        """Nobody hears that there is no root yet before all have asked."""
        if fake.seen.count(("GET", SECRET)) >= 8:
            all_asked.set()
        await all_asked.wait()

    fake.wait = hold
    async with fake.running() as kube:
        authorities = await asyncio.gather(*(found(kube) for _ in range(8)))
    assert len({authority.bundle.roots for authority in authorities}) == 1
    assert fake.seen.count(("POST", SECRETS)) == 8, "the race was real"


def secret_of(**data: bytes) -> dict[str, Any]:
    encoded = {name.replace("_", "."): base64.b64encode(pem).decode() for name, pem in data.items()}
    return {"metadata": {"name": "podlink-ca"}, "data": encoded}


@pytest.mark.fault_row("root-lost")
async def test_a_secret_that_holds_no_working_ca_is_never_overwritten() -> None:
    good, other = create_root("cluster.local", utcnow()), create_root("cluster.local", utcnow())
    fake = FakeKube()
    broken = [
        {"metadata": {"name": "podlink-ca"}},
        secret_of(tls_crt=good.tls_crt),
        secret_of(tls_crt=good.tls_crt, tls_key=other.tls_key),
        {"metadata": {}, "data": {"tls.crt": "%%%", "tls.key": "%%%"}},
    ]
    async with fake.running() as kube:
        for secret in broken:
            fake.objects[SECRET] = secret
            with pytest.raises(AuthorityRefused):
                await found(kube)
            assert fake.objects[SECRET] is secret
    assert all(method == "GET" for method, _ in fake.seen)


async def test_a_plain_tls_secret_works_and_carries_its_generation() -> None:
    good = create_root("cluster.local", utcnow())
    fake = FakeKube()
    secret = secret_of(tls_crt=good.tls_crt, tls_key=good.tls_key)
    fake.objects[SECRET] = secret
    async with fake.running() as kube:
        assert (await found(kube)).bundle.generation == 1
        secret["metadata"]["annotations"] = {GENERATION_ANNOTATION: "7"}
        assert (await found(kube)).bundle.generation == 7
        secret["metadata"]["annotations"] = {GENERATION_ANNOTATION: "-7"}
        with pytest.raises(AuthorityRefused, match="whole number"):
            await found(kube)


@pytest.mark.parametrize("status", [403, 500])
async def test_an_api_server_that_does_not_help_founds_no_second_root(status: int) -> None:
    fake = FakeKube()
    fake.answers["GET", SECRET] = (status, {"reason": "x", "message": "y"})
    async with fake.running() as kube:
        with pytest.raises(KubeError):
            await found(kube)
    assert not fake.objects

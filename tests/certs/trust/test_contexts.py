"""Handshakes in memory: both sides verified, TLS 1.3 only, nothing resumed, no key on disk."""

import os
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from certs.trust.contexts import MAX_CHAIN, MaterialRefused, TlsMaterial
from tests.certs.forge import Forge, Pair
from tests.certs.handshakes import material, shake
from tests.patience import PATIENCE_S

ALPN = ["podlink/1"]


def test_two_lawful_ends_meet_and_see_each_other(forge: Forge, good_leaf: Pair) -> None:
    peer = forge.leaf("spiffe://cluster.local/ns/prod/sa/db")
    near, far = shake(
        material(forge, good_leaf).client_context(ALPN), material(forge, peer).server_context(ALPN)
    )
    assert near.version() == "TLSv1.3"
    assert near.selected_alpn_protocol() == far.selected_alpn_protocol() == "podlink/1"
    assert near.getpeercert(binary_form=True) == peer.der
    assert far.getpeercert(binary_form=True) == good_leaf.der


@pytest.mark.attack_row(3)
@pytest.mark.attack_row(13)
def test_a_chain_that_does_not_end_in_our_root_is_refused_on_either_side(forge: Forge) -> None:
    good = material(forge, forge.leaf())
    for name, pair in forge.untrusted_chains().items():
        stranger = material(forge, pair)
        with pytest.raises(ssl.SSLError):
            shake(stranger.client_context(), good.server_context())
        with pytest.raises(ssl.SSLError):
            shake(good.client_context(), stranger.server_context())
        with pytest.raises(MaterialRefused, match="does not verify"):
            stranger.prove()
        assert name
    good.prove()


@pytest.mark.attack_row(2)
def test_a_client_without_a_certificate_is_refused(forge: Forge, good_leaf: Pair) -> None:
    bare = ssl.create_default_context(cadata=forge.root_pem.decode())
    bare.check_hostname = False
    with pytest.raises(ssl.SSLError, match="PEER_DID_NOT_RETURN_A_CERTIFICATE"):
        shake(bare, material(forge, good_leaf).server_context())


@pytest.mark.attack_row(4)
def test_older_tls_is_refused_on_either_side(forge: Forge, good_leaf: Pair) -> None:
    ours = material(forge, good_leaf)
    for make_old in ("client", "server"):
        client, server = ours.client_context(), ours.server_context()
        old = client if make_old == "client" else server
        old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_2
        with pytest.raises(ssl.SSLError, match=r"PROTOCOL|ALERT"):
            shake(client, server)


@pytest.mark.attack_row(4)
def test_a_wrong_or_missing_alpn_is_seen_as_none(forge: Forge, good_leaf: Pair) -> None:
    """Python lets such a handshake pass; whoever uses these contexts must look."""
    ours = material(forge, good_leaf)
    for offered in ([], ["h2"]):
        _, far = shake(ours.client_context(offered), ours.server_context(ALPN))
        assert far.selected_alpn_protocol() is None


@pytest.mark.attack_row(22)
def test_no_session_is_ever_resumed(forge: Forge, good_leaf: Pair) -> None:
    client = material(forge, good_leaf).client_context()
    server = material(forge, good_leaf).server_context()
    assert server.num_tickets == 0
    near, far = shake(client, server)
    far.write(b"x")
    near.read(1)  # tickets, if any, come with the first data
    assert near.session is None or not near.session.has_ticket
    again = client.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), session=near.session)
    assert not again.session_reused
    assert server.session_stats()["hits"] == 0


@pytest.mark.attack_row(25)
def test_a_huge_certificate_message_is_refused(forge: Forge, good_leaf: Pair) -> None:
    server = material(forge, good_leaf).server_context()
    chain = good_leaf.chain_pem + forge.root_pem * 2500  # about one megabyte of DER
    huge = material(forge, good_leaf).client_context()
    with _memory_file(good_leaf.key_pem + chain) as path:
        huge.load_cert_chain(path.as_posix())
    with pytest.raises(ssl.SSLError, match="EXCESSIVE_MESSAGE_SIZE"):
        shake(huge, server)


def test_a_chain_longer_than_we_would_send_is_refused(forge: Forge, good_leaf: Pair) -> None:
    chain = good_leaf.chain_pem + forge.root_pem * MAX_CHAIN
    with pytest.raises(MaterialRefused, match="chain"):
        TlsMaterial(good_leaf.key_pem, chain, forge.root_pem).client_context()


def test_a_key_of_another_leaf_is_refused(forge: Forge, good_leaf: Pair) -> None:
    other = forge.leaf()
    with pytest.raises(MaterialRefused):
        TlsMaterial(other.key_pem, good_leaf.chain_pem, forge.root_pem).server_context()


@pytest.mark.parametrize("bundle", [b"", b"no pem", b"\xff"])
def test_an_unreadable_bundle_is_refused(good_leaf: Pair, bundle: bytes) -> None:
    with pytest.raises(MaterialRefused):
        TlsMaterial(good_leaf.key_pem, good_leaf.chain_pem, bundle).client_context()


def test_the_web_server_asks_for_no_certificate_but_shows_its_own(forge: Forge) -> None:
    shown = forge.leaf(dns=["podlink-injector.podlink-system.svc"])
    caller = ssl.create_default_context(cadata=forge.root_pem.decode())
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = material(forge, shown).webserver_context()
    near = caller.wrap_bio(
        to_client, to_server, server_hostname="podlink-injector.podlink-system.svc"
    )
    far = server.wrap_bio(to_server, to_client, server_side=True)
    for end in (near, far, near, far):
        try:
            end.do_handshake()
        except ssl.SSLWantReadError:
            continue
    assert near.getpeercert(binary_form=True) == shown.der


@pytest.mark.attack_row(41)
def test_the_key_shows_neither_in_text_nor_as_an_open_file(forge: Forge, good_leaf: Pair) -> None:
    ours = material(forge, good_leaf)
    assert b"PRIVATE" not in repr(ours).encode()
    contexts = [ours.server_context() for _ in range(20)]
    assert len(contexts) == 20
    links = Path("/proc/self/fd").iterdir()
    assert not [link for link in links if "podlink-leaf" in _target(link)]


def test_the_data_plane_modules_load_no_cryptography() -> None:
    code = (
        "import sys, certs.trust.contexts, certs.trust.facts, certs.trust.identity;"
        "sys.exit(any(m.split('.')[0] in ('cryptography', 'grpc') for m in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, timeout=PATIENCE_S)
    assert done.returncode == 0


def _target(link: Path) -> str:
    try:
        return str(link.readlink())
    except OSError:  # the listing's own descriptor
        return ""


@contextmanager
def _memory_file(content: bytes) -> Iterator[Path]:
    fd = os.memfd_create("test")
    try:
        os.write(fd, content)
        yield Path(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)

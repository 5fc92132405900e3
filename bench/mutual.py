"""Proof that a pair does mutual TLS 1.3, before its figures may count.

A proxy that skips a check is faster. So each pair must refuse an impostor as far proxy, and at the
far one a peer without a certificate, with a stranger's, with TLS 1.2 and in plaintext; and it must
still serve the load, or the refusals prove nothing.
"""

import contextlib
import socket
import ssl
import threading

from bench.certificates import Certificates, Files
from bench.load import REQUEST
from bench.proxies import Address, Proxy

_WAIT_S = 2.0
_VERDICT_S = 0.5
_POLL_S = 0.2
_ANSWERED = b"HTTP/1.1 200"


class NotMutual(SystemExit):
    """A pair let somebody in, or was let in by somebody, whom it must refuse."""


def answers(address: Address) -> bool:
    """Whether a request to this address gets the app's answer."""
    try:
        with socket.create_connection(address, _WAIT_S) as connection:
            connection.sendall(REQUEST)
            return connection.recv(65536).startswith(_ANSWERED)
    except OSError:
        return False


def listens(address: Address) -> bool:
    """Whether somebody accepts connections here."""
    try:
        socket.create_connection(address, _WAIT_S).close()
    except OSError:
        return False
    return True


def check_near_refuses_impostor(proxy: Proxy) -> None:
    """With an impostor at the far address, no byte of the load may reach it.

    Call it when only the near proxy runs. Raises NotMutual.
    """
    assert proxy.tunnel_address is not None
    stranger = proxy.site.certificates.stranger
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(stranger.chain, stranger.key)
    if proxy.alpn is not None:
        context.set_alpn_protocols([proxy.alpn])
    heard: list[bytes] = []
    reached, over = threading.Event(), threading.Event()
    with socket.create_server(proxy.tunnel_address) as listener:
        listener.settimeout(_POLL_S)

        def listen() -> None:
            # More than one connection may come: a retry of our own earlier probe, then the load's.
            while not over.is_set():
                with contextlib.suppress(OSError):
                    connection, _ = listener.accept()
                    reached.set()
                    connection.settimeout(_POLL_S)
                    with context.wrap_socket(connection, server_side=True) as tunnel:
                        heard.append(tunnel.recv(65536))

        impostor = threading.Thread(target=listen)
        impostor.start()
        answered = answers(proxy.client_address)
        reached.wait(_WAIT_S)
        over.set()
        impostor.join()
    if not reached.is_set():
        raise NotMutual(f"bench: {proxy.name}: the near proxy never dialled the far address")
    if answered or any(heard):
        raise NotMutual(f"bench: {proxy.name}: the near proxy trusted an impostor")


def check_far_refuses_strangers(proxy: Proxy) -> None:
    """Nobody without a leaf of our authority gets through the far proxy. Raises NotMutual."""
    assert proxy.tunnel_address is not None
    certificates = proxy.site.certificates
    if answers(proxy.tunnel_address):
        raise NotMutual(f"bench: {proxy.name}: the far proxy took plaintext")
    cases: list[tuple[str, Files | None, ssl.TLSVersion]] = [
        ("a peer without a certificate", None, ssl.TLSVersion.TLSv1_3),
        ("a stranger's certificate", certificates.stranger, ssl.TLSVersion.TLSv1_3),
        ("TLS 1.2", certificates.near, ssl.TLSVersion.TLSv1_2),
    ]
    for what, leaf, version in cases:
        if _admits(proxy, proxy.tunnel_address, leaf, version):
            raise NotMutual(f"bench: {proxy.name}: the far proxy took {what}")
    if not _admits(proxy, proxy.tunnel_address, certificates.near, ssl.TLSVersion.TLSv1_3):
        raise NotMutual(f"bench: {proxy.name}: the far proxy refused the right certificate")


def _admits(proxy: Proxy, address: Address, leaf: Files | None, version: ssl.TLSVersion) -> bool:
    """Whether the far proxy keeps a tunnel with this leaf open once it has judged it.

    A TLS 1.3 dialler ends its handshake before the acceptor has seen the certificate, so the
    verdict is what comes next: an answer or silence for a peer let in, an alert or an end for one
    refused. Nothing is sent, so a peer that is let in hears nothing yet.
    """
    context = _context(proxy.site.certificates, leaf, version)
    if proxy.alpn is not None:
        context.set_alpn_protocols([proxy.alpn])
    with contextlib.ExitStack() as held:
        try:
            connection = held.enter_context(socket.create_connection(address, _WAIT_S))
            tunnel = held.enter_context(context.wrap_socket(connection))
        except OSError:
            return False
        tunnel.settimeout(_VERDICT_S)
        try:
            return bool(tunnel.recv(1))
        except TimeoutError:
            return True
        except OSError:
            return False


def _context(
    certificates: Certificates, leaf: Files | None, version: ssl.TLSVersion
) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(certificates.authority)
    context.minimum_version = context.maximum_version = version
    if leaf is not None:
        context.load_cert_chain(leaf.chain, leaf.key)
    return context

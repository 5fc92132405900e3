"""Real TLS handshakes in memory, with contexts of ours or of stock OpenSSL."""

import ssl

from certs.trust.contexts import TlsMaterial
from tests.certs.forge import BadLeaf, Forge, Pair


def material(forge: Forge, pair: Pair | BadLeaf) -> TlsMaterial:
    return TlsMaterial(pair.key_pem, pair.chain_pem, forge.root_pem)


def lax(context: ssl.SSLContext) -> ssl.SSLContext:
    """The same context with OpenSSL's default rules: what a careless mesh would use."""
    context.verify_flags = ssl.VERIFY_X509_TRUSTED_FIRST
    return context


def shake(client: ssl.SSLContext, server: ssl.SSLContext) -> tuple[ssl.SSLObject, ssl.SSLObject]:
    """Shake hands until both ends are done; raises the ssl.SSLError of the end that refuses."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    near = client.wrap_bio(to_client, to_server, server_side=False)
    far = server.wrap_bio(to_server, to_client, server_side=True)
    waiting = [near, far]
    for _ in range(6):
        for end in list(waiting):
            try:
                end.do_handshake()
                waiting.remove(end)
            except ssl.SSLWantReadError:
                continue
    assert not waiting, "the handshake hangs"
    return near, far


def accepted_by_stock_openssl(forge: Forge, pair: Pair | BadLeaf) -> bool:
    """Whether a peer with OpenSSL's default rules believes this leaf, as client and as server."""
    good, tried = material(forge, forge.leaf()), material(forge, pair)
    try:
        shake(lax(tried.client_context()), lax(good.server_context()))
        shake(lax(good.client_context()), lax(tried.server_context()))
    except ssl.SSLError:
        return False
    return True

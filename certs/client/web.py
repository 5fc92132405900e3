"""An HTTPS context for callers without a leaf (the API server) whose certificate follows a source.

A web server takes one SSLContext for its life. The certificate of a context in use is never
changed; instead each handshake is handed to the context of the present Svid before it answers.
"""

import ssl

from certs.client.rpc import NoCertificate
from certs.client.source import SvidSource


def following_context(source: SvidSource) -> ssl.SSLContext:
    """For `aiohttp.web.TCPSite(ssl_context=...)`. Raises NoCertificate if none is in force yet.

    A handshake that comes while no certificate is in force is refused with an alert.
    """
    if (shown := source.current) is None:
        raise NoCertificate("no certificate in force")
    context = present = shown.material.webserver_context()

    def pick(
        handshake: ssl.SSLObject | ssl.SSLSocket, _name: str | None, _context: ssl.SSLContext
    ) -> int | None:
        nonlocal shown, present
        svid = source.current
        if svid is None:
            return ssl.ALERT_DESCRIPTION_INTERNAL_ERROR
        if shown is None or svid.generation != shown.generation:
            shown, present = svid, svid.material.webserver_context()
        handshake.context = present
        return None

    context.sni_callback = pick
    return context

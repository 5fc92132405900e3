"""The admin socket: what the proxy knows and does now, as JSON, for whoever may exec into it.

- `server`: HTTP/1.1 on a unix socket that only the proxy's own user may use.
- `views`: what each page says.
- `tap`: one line per link as it ends, while somebody listens.
- `__main__`: `python -m sidecar.admin <path>`, the client inside the container.

Nothing here changes anything: every page is read-only. docs/admin.md describes the pages.
"""

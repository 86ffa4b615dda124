"""Who may talk to the server: this computer, through pages of its own, unless the operator says otherwise."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

from fastapi import HTTPException, Request
from monailabel.config import settings


class Guard:
    """Asked before every endpoint; refuses callers from elsewhere.

    Without authentication, whoever reaches the server reads and changes the studies. So it answers this computer only,
    whatever address it listens on; and not the pages of other web sites that run in this computer's browser, which the
    browser marks by ``Origin``, nor names that a foreign DNS server makes point here.

    Args:
        allow_remote: answer other computers too; the operator asked for it by name.
    """

    def __init__(self, allow_remote: bool) -> None:
        self.allow_remote = allow_remote

    def check(self, request: Request) -> None:
        """Pass, or raise HTTPException 403."""
        if not (self.allow_remote or settings.MONAI_LABEL_AUTH_ENABLE):
            if request.client is None or not is_loopback(request.client.host):
                raise HTTPException(
                    403,
                    "This server answers its own computer only, because it has no authentication. Its operator can "
                    "start it with --allow-remote (--conf allow_remote true), or you come through ssh -L.",
                )
            name = urlsplit(f"//{request.headers.get('host', '')}").hostname or ""
            if not is_loopback(name):
                raise HTTPException(403, f"This server is not called {name!r}. Use http://127.0.0.1:<port>.")
        origin = request.headers.get("origin")
        if origin and origin.rstrip("/") not in self._own(request):
            raise HTTPException(
                403, f"Pages from {origin} may not use this server (MONAI_LABEL_CORS_ORIGINS lists who may)."
            )

    @staticmethod
    def _own(request: Request) -> set[str]:
        named = {str(origin).rstrip("/") for origin in settings.MONAI_LABEL_CORS_ORIGINS}
        host = request.headers.get("host", "")
        return named | {f"http://{host}", f"https://{host}"}


def is_loopback(host: str) -> bool:
    """Whether an address or name is this computer's own."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost"
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback

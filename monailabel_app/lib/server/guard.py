"""Who may talk to the server: this computer, through pages of its own, unless the operator says otherwise."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from urllib.parse import urlsplit

from fastapi import HTTPException, Request
from monailabel.config import settings


class Guard:
    """Asked before every endpoint; refuses callers from elsewhere.

    Without authentication, whoever reaches the server reads and changes the studies. So it answers this computer only,
    whatever address it listens on; and not the pages of other web sites that run in this computer's browser, which the
    browser marks by ``Origin``, nor names that a foreign DNS server makes point here. MONAI Label's authentication
    takes the place of the first and the last of these: a foreign page has no token.

    Args:
        allow_remote: answer other computers too; the operator asked for it by name.
        names: the names by which other computers may call the server; empty: any. An address may always be used, as no
            DNS server has a say in it.
    """

    def __init__(self, allow_remote: bool, names: Iterable[str] = ()) -> None:
        self.allow_remote, self.names = allow_remote, frozenset(name.lower() for name in names)

    def check(self, request: Request) -> None:
        """Pass, or raise HTTPException 403."""
        if not settings.MONAI_LABEL_AUTH_ENABLE:
            if not self.allow_remote and (request.client is None or not is_loopback(request.client.host)):
                raise HTTPException(
                    403,
                    "This server answers its own computer only, because it has no authentication. Its operator can "
                    "start it with --allow-remote (--conf allow_remote true), or you come through ssh -L.",
                )
            name = urlsplit(f"//{request.headers.get('host', '')}").hostname or ""
            if not self._answers_to(name):
                known = f"{', '.join(sorted(self.names))} (--names says how)" if self.allow_remote else "127.0.0.1"
                raise HTTPException(403, f"This server is not called {name!r}, but {known}.")
        origin = request.headers.get("origin")
        if origin and origin.rstrip("/") not in self._own(request):
            raise HTTPException(
                403, f"Pages from {origin} may not use this server (MONAI_LABEL_CORS_ORIGINS lists who may)."
            )

    def _answers_to(self, name: str) -> bool:
        """Whether the server may be called by this name."""
        if is_loopback(name):
            return True
        return self.allow_remote and (not self.names or name in self.names or is_address(name))

    @staticmethod
    def _own(request: Request) -> set[str]:
        named = {str(origin).rstrip("/") for origin in settings.MONAI_LABEL_CORS_ORIGINS}
        host = request.headers.get("host", "")
        return named | {f"http://{host}", f"https://{host}"}


def is_address(host: str) -> bool:
    """Whether it is an IP address, and not a name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """Whether an address or name is this computer's own."""
    if not is_address(host):
        return host == "localhost"
    address = ipaddress.ip_address(host)
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback

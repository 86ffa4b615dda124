"""Who may talk to the server, by which name, and what takes the place of that: MONAI Label's authentication."""

import time
from types import SimpleNamespace

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from fastapi import HTTPException, Request
from monailabel.config import settings
from monailabel.endpoints.user import auth

from monailabel_app import serve as module
from monailabel_app.lib.server.guard import Guard
from monailabel_app.lib.server.mended import mend_tokens

LOCAL, NAMED, ANY = Guard(False), Guard(True, ["scans.example.org"]), Guard(True)
ELSEWHERE = "192.168.1.7"


def ask(guard, host, client="127.0.0.1", origin=None):
    headers = [(b"host", host.encode())] + ([(b"origin", origin.encode())] if origin else [])
    guard.check(Request({"type": "http", "headers": headers, "client": (client, 50000)}))


@pytest.mark.parametrize("host", ["127.0.0.1:8000", "localhost:8000", "[::1]:8000"])
def test_this_computer_by_its_own_names(host):
    for guard in (LOCAL, NAMED, ANY):
        ask(guard, host, origin=f"http://{host}")
    with pytest.raises(HTTPException, match="its own computer only"):
        ask(LOCAL, host, client=ELSEWHERE)


@pytest.mark.parametrize("host", ["scans.example.org:8000", "SCANS.example.org", "192.168.1.5:8000", "[fe80::1]:8000"])
def test_other_computers_by_the_name_that_was_asked_for_or_by_address(host):
    ask(NAMED, host, client=ELSEWHERE, origin=f"http://{host}")
    with pytest.raises(HTTPException, match="not called"):
        ask(LOCAL, host)


@pytest.mark.parametrize("host", ["evil.example.com:8000", "scans.example.org.evil.com", "evil-scans.example.org", ""])
def test_page_whose_name_was_made_to_lead_here(host):
    """DNS rebinding: for the browser it is a page of this server, so that `Origin` says nothing."""
    with pytest.raises(HTTPException, match="is not called .*, but scans.example.org"):
        ask(NAMED, host, client=ELSEWHERE, origin=f"http://{host}")


def test_without_names_the_proxy_in_front_decides():
    ask(ANY, "whatever.example.org", client=ELSEWHERE, origin="https://whatever.example.org")
    with pytest.raises(HTTPException, match="may not use this server"):
        ask(ANY, "whatever.example.org", client=ELSEWHERE, origin="https://elsewhere.example.org")


def test_authentication_takes_its_place(monkeypatch):
    monkeypatch.setattr(settings, "MONAI_LABEL_AUTH_ENABLE", True)
    ask(LOCAL, "scans.example.org", client=ELSEWHERE)
    with pytest.raises(HTTPException, match="may not use this server"):
        ask(LOCAL, "scans.example.org", client=ELSEWHERE, origin="http://elsewhere.example.org")


class Stop(Exception):
    """Raised where the server would start."""


@pytest.fixture
def conf_of(monkeypatch):
    """Calls `serve` up to the point where the server would start; what the app would be told."""
    for name in ("APP_DIR", "STUDIES", "APP_CONF", "SERVER_PORT", "DATASTORE_FILE_EXT", "CORS_ORIGINS"):
        monkeypatch.setattr(settings, f"MONAI_LABEL_{name}", getattr(settings, f"MONAI_LABEL_{name}"))

    def stop():
        raise Stop

    monkeypatch.setattr(module, "_bind", lambda host, port: SimpleNamespace(getsockname=lambda: (host, 8000)))
    monkeypatch.setattr(module, "_export_settings", stop)

    def call(**given):
        with pytest.raises(Stop):
            module.serve(studies="http://archive/dicom-web", **given)
        return settings.MONAI_LABEL_APP_CONF

    return call


class TestServe:
    def test_host_is_the_name_by_which_it_may_be_called(self, conf_of, capsys):
        assert conf_of(host="scans.example.org", allow_remote=True)["names"] == "scans.example.org"
        assert conf_of(host="0.0.0.0", allow_remote=True, names="a.org,b.org")["names"] == "a.org,b.org"
        assert conf_of(host="0.0.0.0", allow_remote=True, names=("a", "b"))["names"] == "a,b"  # what fire makes of a,b
        assert "names" not in conf_of(host="127.0.0.1")
        assert "Warning" not in capsys.readouterr().out

    def test_any_name_is_warned_of(self, conf_of, capsys):
        assert "names" not in conf_of(host="0.0.0.0", allow_remote=True)
        assert "Warning: the server answers whatever name it is called by" in capsys.readouterr().out

    def test_address_that_others_reach_with_authentication(self, conf_of, monkeypatch):
        monkeypatch.setattr(settings, "MONAI_LABEL_AUTH_ENABLE", True)
        assert conf_of(host="0.0.0.0")["allow_remote"] == "false"


@pytest.fixture(scope="module")
def realm():
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


@pytest.fixture
def tokens(realm, monkeypatch):
    """MONAI Label's authentication, on, with the realm's public key."""
    public = realm.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    monkeypatch.setattr(settings, "MONAI_LABEL_AUTH_ENABLE", True)
    monkeypatch.setattr(auth, "get_public_key", lambda uri: public)
    monkeypatch.setattr(auth, "jwt", jwt)
    mend_tokens()


def token(key, algorithm="RS256", seconds=60):
    said = {"preferred_username": "ann", "exp": time.time() + seconds, "realm_access": {"roles": ["monailabel-user"]}}
    return jwt.encode(said, key, algorithm=algorithm)


class TestTokens:
    def test_token_of_the_realm(self, realm, tokens):
        user = auth.from_token(token(realm))
        assert (user.username, user.roles) == ("ann", ["monailabel-user"])

    def test_stock_refuses_every_token(self, realm, tokens, monkeypatch):
        monkeypatch.setattr(auth, "jwt", jwt)
        with pytest.raises(jwt.InvalidTokenError, match="algorithms"):
            auth.from_token(token(realm))

    def test_tokens_of_others_are_refused(self, realm, tokens):
        other = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        for given in (token(other), token(realm, seconds=-60), token("x" * 32, "HS256"), token(None, "none"), ""):
            with pytest.raises(jwt.InvalidTokenError):
                auth.from_token(given)

"""Two places of MONAI Label that would otherwise need endpoints of our own: its uploads and its tokens."""

from __future__ import annotations

import os
import shutil
from functools import partial
from types import SimpleNamespace
from typing import IO

import jwt
from monailabel.endpoints import datastore, infer, session
from monailabel.endpoints.user import auth

ALGORITHMS = ["RS256", "RS384", "RS512"]  # of a public key alone, which is what MONAI Label asks the realm for


def mend_uploads() -> None:
    """Let an upload that does not fit on the disk leave nothing there; MONAI Label forgets what it wrote until then."""
    for module in (datastore, infer, session):
        module.shutil = SimpleNamespace(copyfileobj=_copy)


def mend_tokens() -> None:
    """Name the signatures that count; MONAI Label names none, and PyJWT then refuses every token."""
    auth.jwt = SimpleNamespace(decode=partial(jwt.decode, algorithms=ALGORITHMS))


def _copy(upload: IO[bytes], file: IO[bytes]) -> None:
    try:
        shutil.copyfileobj(upload, file)
        file.flush()  # here, not when it is closed: a full disk may show only now
    except BaseException:
        os.unlink(file.name)
        raise

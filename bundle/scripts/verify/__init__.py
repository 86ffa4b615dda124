"""Judges a released bundle that comes from elsewhere, before any of it is parsed, imported or run."""

from .bundle import verified, verify

__all__ = ["verified", "verify"]

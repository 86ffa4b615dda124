"""A finished run as a standard MONAI Bundle: flat configurations, weights, code, model card and sums in one zip."""

from scripts.release.build import release

__all__ = ["release"]

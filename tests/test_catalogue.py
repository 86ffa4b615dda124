"""The page of networks."""

from __future__ import annotations

import pytest
from scripts import catalogue
from support import CONFIGS

SMALL = catalogue.Entry("U-Net", "unet", (1, 32, 32, 32), 3, {"kernel_size": 3}, 1.0, 2.0, "a paper")


def test_every_network_is_on_the_page():
    known = {entry.overlay for entry in catalogue.ENTRIES}
    files = {path.stem.removeprefix("network_") for path in CONFIGS.glob("network_*.yaml")}
    assert known - {""} == {name for name in files if not name.startswith("swin_next")}  # of the base, made small


def test_measures_a_network():
    measured = catalogue.measure(SMALL)
    assert measured["parameters"] == pytest.approx(sum(p.numel() for p in catalogue.build(SMALL).parameters()) / 1e6)
    whole = catalogue.measure(catalogue.Entry("U-Net", "unet", (1, 64, 64, 64), 3), forward=False)
    assert whole["gmacs"] == pytest.approx(8 * measured["gmacs"])
    assert measured["seconds"] > 0
    assert measured["gigabytes"] > 0.1
    assert "seconds" not in whole


def test_page(tmp_path, monkeypatch):
    monkeypatch.setattr(catalogue, "ENTRIES", (SMALL,))
    page = catalogue.write_page(str(tmp_path / "new" / "networks.md"), forward=False)
    row = (tmp_path / "new" / "networks.md").read_text().splitlines()[-1]
    assert page.endswith("networks.md")
    assert row.startswith("| U-Net | `network_unet` | 1×32×32×32 | ")
    gmacs = catalogue.measure(SMALL, forward=False)["gmacs"]
    assert row.endswith(f" | 1.00 | {gmacs:.1f} | 2.0 |  |  | a paper |")

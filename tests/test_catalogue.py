"""The page of networks."""

from __future__ import annotations

import os
import re

import pytest
import torch
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


def test_a_training_step_takes_longer_and_more():
    entry = catalogue.Entry("U-Net", "unet", (1, 64, 64, 64), 3)
    measured = catalogue.measure(entry)
    step = catalogue.measure_step(entry)
    assert step["step_seconds"] > measured["seconds"]
    assert step["step_gigabytes"] >= measured["gigabytes"]


@pytest.mark.parametrize("entry", catalogue.ENTRIES, ids=lambda entry: entry.name)
def test_sizes_are_those_of_the_papers(entry):
    with torch.device("cpu" if entry.overlay in ("", "swin_unetr") else "meta"):  # building MONAI's Swin computes
        network = catalogue.build(entry)
    millions = sum(p.numel() for p in network.parameters()) / 1e6
    stated = re.search(r"its code has ([\d.]+)", entry.source)
    if stated:
        assert f"{millions:.2f}" == f"{float(stated[1]):.2f}"
    elif entry.parameters:
        assert millions == pytest.approx(entry.parameters, rel=0.02)


def test_page(tmp_path, monkeypatch):
    monkeypatch.setattr(catalogue, "ENTRIES", (SMALL,))
    page = catalogue.write_page(str(tmp_path / "new" / "networks.md"), forward=False, train=False)
    lines = (tmp_path / "new" / "networks.md").read_text().splitlines()
    assert page.endswith("networks.md")
    assert lines[-1].startswith("| U-Net | `network_unet` | 1×32×32×32 | ")
    gmacs = catalogue.measure(SMALL, forward=False)["gmacs"]
    assert lines[-1].endswith(f" | 1.00 | {gmacs:.1f} | 2.0 |  |  |  |  | a paper |")
    assert len({line.count("|") for line in lines[-3:]}) == 1


def test_page_without_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(catalogue, "ENTRIES", (SMALL,))
    monkeypatch.setattr(catalogue, "_alone", lambda function, *arguments: {})  # what a killed process gives
    catalogue.write_page(str(tmp_path / "networks.md"))
    assert (tmp_path / "networks.md").read_text().endswith(" | 2.0 | none | none | none | none | a paper |\n")


def test_a_killed_process_gives_nothing():
    assert catalogue._alone(os._exit, 9) == {}
    assert catalogue._alone(dict, [("a", 1.0)]) == {"a": 1.0}

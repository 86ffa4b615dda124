"""The model card: numbers, failures, use; nothing that names a patient."""

import csv
import json
import re

import pandas as pd
import pytest
from scripts.release.card import _groups, _worst


@pytest.fixture(scope="module")
def card(bundle):
    return (bundle / "docs" / "README.md").read_text()


def test_scores_are_those_of_the_evaluation(card, run):
    dice = json.loads((run / "evaluation" / "summary.json").read_text())["classes"]["ball"]["dice"]
    assert f"| ball | {dice['mean']:.3f} ± {dice['std']:.3f} |" in card


def test_worst_case_comes_first_under_a_number(card, run):
    with (run / "evaluation" / "per_case.csv").open() as file:
        lowest = min(float(row["dice"]) for row in csv.DictReader(file))
    assert f"| case_01 | – | {lowest:.3f} | ball {lowest:.3f} |" in card
    assert "names no groups" in card


def test_table_of_cases_has_numbers_for_names_and_the_scores_of_the_run(bundle, run):
    released = pd.read_csv(bundle / "docs" / "evaluation" / "per_case.csv")
    own = pd.read_csv(run / "evaluation" / "per_case.csv")
    assert sorted(released["case_id"]) == ["case_01", "case_02"]
    assert released["dice"].tolist() == sorted(own["dice"])


def test_pictures_are_there_and_small(card, bundle):
    named = re.findall(r"!\[\w+\]\(([^)]+)\)", card)
    assert set(named) >= {"dice.png", "curves.png"}
    for name in named:
        content = (bundle / "docs" / name).read_bytes()
        assert content.startswith(b"\x89PNG")
        assert len(content) < 200_000


def test_origin_licence_and_use_are_named(card):
    for text in (
        "Balls that a test drew",
        "CC0-1.0",
        "Tests",
        "1.2.0: More balls",
        "inference.yaml",
        "segment(",
    ):
        assert text in card
    assert "{{" not in card
    assert "{%" not in card


def test_unknown_licence_is_said_to_be_unknown():
    from scripts.release.card import render
    from scripts.release.facts import UNKNOWN

    text = render("data_license.txt", {"source": "x", "licence": UNKNOWN, "unknown": UNKNOWN})
    assert "Nobody stated the licence" in text
    assert "Nobody" not in render("data_license.txt", {"source": "x", "licence": "CC0", "unknown": UNKNOWN})


def test_groups_and_worst_cases():
    table = pd.DataFrame(
        {
            "case_id": ["case_01", "case_01", "case_02", "case_02", "case_03", "case_03"],
            "class": ["liver", "tumour"] * 3,
            "dice": [0.5, 0.1, 0.8, None, 1.0, 0.8],
            "group": ["A", "A", "B", "B", "", ""],
        }
    )
    assert _worst(table)[0] == {"case": "case_01", "group": "A", "dice": "0.300", "worst": "tumour 0.100"}
    assert _groups(table) == [
        {"group": "A", "cases": "1", "dice": "0.300", "least": "0.300"},
        {"group": "B", "cases": "1", "dice": "0.800", "least": "0.800"},
        {"group": "none given", "cases": "1", "dice": "0.900", "least": "0.900"},
    ]

"""The leaderboard in its formats, the page, groups, and the difference to a paper."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from compare_support import write_run
from scripts.compare import compare
from scripts.compare.analysis import analyse
from scripts.compare.collect import read_runs
from scripts.compare.groups import group_table
from scripts.compare.tables import escape, latex, markdown

NAMES = {"unet": 0.85, "utnet": 0.84, "dynunet": 0.6}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three networks with two seeds on twelve patients of two vendors: two alike, one clearly worse."""
    root = tmp_path_factory.mktemp("compare")
    rng = np.random.default_rng(0)
    hard = rng.normal(0, 0.05, 12)
    for name, mean in NAMES.items():
        for seed in (0, 1):
            cases = {
                f"p{i:02d}": tuple(np.clip(mean + hard[i] - 0.1 * (i % 2) + rng.normal(0, 0.02, 2), 0, 1))
                for i in range(12)
            }
            write_run(
                root / "runs" / f"{name}_{seed}",
                cases,
                seed=seed,
                command=f"nny train network_{name} <x>",
                groups={case: "AB"[int(case[1:]) % 2] for case in cases},
                note={"network": name, "peak_gb": 1.0 + seed},
            )
    compare(str(root / "runs"), output=str(root / "out"), against="utnet/acdc")
    return root


def raw(folder):
    parts = []
    for run in sorted((folder / "runs").iterdir()):
        table = pd.read_csv(run / "evaluation" / "per_case.csv")
        parts.append(table.assign(network=run.name.rpartition("_")[0]))
    return pd.concat(parts)


def test_leaderboard_holds_the_means_of_the_scores(folder):
    board = pd.read_csv(folder / "out" / "leaderboard.csv").set_index(["variant", "class"])
    means = raw(folder).groupby(["network", "class"])["dice"].mean()
    for (network, name), mean in means.items():
        assert board.loc[(network, name), "dice"] == pytest.approx(mean)
    total = board.xs("Total", level="class")
    assert total["dice"].to_dict() == pytest.approx(raw(folder).groupby("network")["dice"].mean().to_dict())
    assert total["rank"].sort_values().index.tolist() == total["dice"].sort_values(ascending=False).index.tolist()
    assert (total["dice_low"] < total["dice"]).all()
    assert (total["dice"] < total["dice_high"]).all()
    assert total["seeds"].tolist() == [2, 2, 2]
    assert total["parameters_m"].tolist() == [2.5] * 3
    assert total["peak_gb"].tolist() == [1.5] * 3
    assert total["step_s"].tolist() == [2.0] * 3  # 8 seconds, 8 cases by twos; the validated epoch is not counted


def test_tests_tell_the_worst_apart_and_the_alike_not(folder):
    table = pd.read_csv(folder / "out" / "tests.csv")
    p = {frozenset((r.a, r.b)): r.p_holm for r in table[table["class"] == "Total"].itertuples()}
    assert p[frozenset(("unet", "dynunet"))] < 0.01
    assert set(table["class"]) == {"liver", "tumour", "Total"}
    text = (folder / "out" / "leaderboard.md").read_text()
    rows = {line.split("|")[1].strip(): line for line in text.splitlines()[2:5]}
    assert "†" not in rows["dynunet"]
    assert sum(line.count("**") for line in rows.values()) == 2 * 5  # Dice in total, of two classes, HD95, surface


def test_groups_name_the_worst_and_the_gap(folder):
    groups = pd.read_csv(folder / "out" / "groups.csv")
    cases = raw(folder).assign(group=lambda t: t["case_id"].str[1:].astype(int) % 2)
    for network, part in cases.groupby("network"):
        means = part.groupby("group")["dice"].mean()
        own = groups[groups["variant"] == network]
        assert own.loc[own["worst"], "group"].tolist() == ["B"]
        assert own["gap"].tolist() == pytest.approx([means[0] - means[1]] * 2)
    one = pd.DataFrame({"variant": "a", "group": "", "patient": ["x", "y"], "value": [0.5, 0.6]})
    assert group_table(one).empty
    two = one.assign(group=["A", "B"])
    assert group_table(two, higher_is_better=False).set_index("group")["worst"].to_dict() == {"A": False, "B": True}


def test_page_is_one_file_and_says_what_was_found(folder):
    html = (folder / "out" / "index.html").read_text()
    assert all(source.startswith("data:image/png;base64,") for source in re.findall(r'src="([^"]*)"', html))
    assert not re.search(r"<(script|link|iframe)|href=|url\(|@import", html)
    for text in (
        "3 networks, 6 runs, 12 cases of 12 patients",
        "Friedman",
        "(worst)",
        "No run was probed",
        "&lt;x&gt;",
    ):
        assert text in html
    for name in ("boxes", "critical_difference", "rank_stability", "pairs", "costs"):
        assert (folder / "out" / "figures" / f"{name}.png").stat().st_size > 5000
    assert re.search(r"that all are equal: p (&lt;|<|=) 0\.\d*[1-9]", html)  # never "p = 0.0000"
    assert "Every setting but the network is the same" in html


def test_latex_is_a_table_and_escapes(folder):
    text = latex(analyse(read_runs([folder / "runs"])))
    body = text[text.index("\\midrule") : text.index("\\bottomrule")]
    head = text[text.index("\\toprule") : text.index("\\midrule")]
    assert {line.count("&") for line in body.splitlines()[1:]} == {head.count("&")}
    assert "\\textbf{0." in body
    assert escape("a_b & 5 % {x}") == "a\\_b \\& 5 \\% \\{x\\}"
    assert "↑" not in text


def test_against_a_paper_prints_the_difference_in_its_unit(folder):
    table = pd.read_csv(folder / "out" / "against_paper.csv").set_index("column")
    mean = raw(folder).groupby("network")["dice"].mean()["utnet"]
    assert table.loc["Dice", "paper"] == 91.77
    assert table.loc["Dice", "measured"] == pytest.approx(100 * mean)
    assert table.loc["Dice", "difference"] == pytest.approx(100 * mean - 91.77)
    assert np.isnan(table.loc["myocardium", "measured"])  # these runs have no such class
    html = (folder / "out" / "index.html").read_text()
    assert "Against the papers" in html
    assert f"<td>{100 * mean - 91.77:+.1f}</td>" in html
    with pytest.raises(ValueError, match="no table 'utnet/acd'.*utnet/acdc"):
        compare(str(folder / "runs"), output=str(folder / "no"), against="utnet/acd")


def test_a_single_run_has_a_page_too(folder, tmp_path):
    page = compare(str(folder / "runs" / "unet_0"), output=str(tmp_path / "one"))
    html = Path(page).read_text()
    assert "nothing to compare it with" in html
    assert "One seed alone" in html
    assert markdown(analyse(read_runs([folder / "runs" / "unet_0"]))).count("\n") > 3


def test_training_options_need_a_dataset(tmp_path):
    with pytest.raises(ValueError, match="give --dataset too"):
        compare(output=str(tmp_path), networks="unet", epochs=2)

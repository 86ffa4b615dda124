"""The papers' tables: the page is written from the data file, and every command names what exists."""

import re

import pytest
from scripts.clinical_schema import PRESETS
from scripts.compare.papers import find_tables, paper_tables
from scripts.compare.reproduce import PAGE, gpu_hours, reproduce_page
from support import CONFIGS

TABLES = paper_tables()


def test_the_page_is_in_step_with_the_data_file():
    assert PAGE.read_text(encoding="utf-8") == reproduce_page(), "run: python -m scripts.compare.reproduce"


def test_all_four_papers_are_there_and_every_table_has_a_source():
    assert {table["arxiv"] for table in TABLES.values()} == {"2501.01406", "2303.09975", "2212.04497", "2107.00781"}
    for table in TABLES.values():
        assert table["source"], table["key"]
        assert table["rows"] or table["missing"], table["key"]


@pytest.mark.parametrize("key", TABLES)
def test_rows_have_the_columns_of_their_table_and_overlays_that_exist(key):
    table = TABLES[key]
    for row in table["rows"]:
        assert set(row["values"]) == set(table["columns"])
        if row.get("network", "base") != "base":
            assert (CONFIGS / f"network_{row['network']}.yaml").is_file()
        if "fusion" in row:
            assert (CONFIGS / f"fusion_{row['fusion']}.yaml").is_file()


@pytest.mark.parametrize("key", [key for key, table in TABLES.items() if table["commands"]])
def test_commands_name_overlays_that_exist_and_train_every_row(key):
    text = "\n".join(TABLES[key]["commands"])
    for name in re.findall(r"--overlays (\S+)", text):
        for overlay in name.split(","):
            assert (CONFIGS / f"{overlay}.yaml").is_file(), overlay
    trained = {name for names in re.findall(r"--networks (\S+)", text) for name in names.split(",")}
    for name in trained - {"base"}:
        assert (CONFIGS / f"network_{name}.yaml").is_file(), name
    for preset in re.findall(r"--clinical_preset (\S+)", text):
        assert preset in PRESETS
    if "compare" in text and TABLES[key]["rows"]:
        assert {row["network"] for row in TABLES[key]["rows"]} <= trained
        assert f"--against {key}" in text


def test_hours_are_arithmetic():
    table = {"steps": 250000, "batch": 2, "gmacs": 48}
    assert gpu_hours(table) == pytest.approx(250000 * 2 * 48e9 * 6 / 20e12 / 3600)
    assert gpu_hours({"steps": 250000}) is None


def test_tables_are_found_by_paper_and_by_name():
    assert len(find_tables("paper")) == len(TABLES)
    assert [table["key"] for table in find_tables("nny-net")] == ["nny-net/networks", "nny-net/fusion"]
    with pytest.raises(ValueError, match="There is no table 'nnunet'"):
        find_tables("nnunet")

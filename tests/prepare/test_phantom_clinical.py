import numpy as np
import openpyxl
import pandas as pd
import pytest
from scripts.prepare.phantom_clinical import COLUMNS, GLOSSARY, MISSING_RATES, draw_row, write_spreadsheet
from sklearn.linear_model import LogisticRegression
from support import REAL_DATA

REAL_TABLE = REAL_DATA / "hcc_tace" / "HCC-TACE-Seg_clinical_data-V2.xlsx"
BEFORE = [
    "hepatitis",
    "age",
    "Sex",
    "Smoking",
    "Alcohol",
    "fhx_can",
    "fhx_livc",
    "Diabetes",
    "Personal history of cancer",
    "Evidence_of_cirh",
    "Pathology",
    "PS_bclc_0_0_1-2_1_3-4_3",
    "CPS",
    "tumor_nodul",
    "Vascular invasion",
    "Metastasis",
    "Lymphnodes",
    "Portal Vein Thrombosis",
    "T_involvment",
    "AFP",
    "CLIP_Score",
    "Okuda",
    "TNM",
    "BCLC",
]
AFTER = [
    "OS",
    "TTP",
    "Death_1_StillAliveorLostToFU_0",
    "Censored_0_progressed_1",
    "1_RECIST_BL",
    "1_RECIST",
    "1_mRECIST",
    "2_mRECIST",
    "1_EASL",
    "Interval_FU",
    "chemotherapy",
]


@pytest.fixture(scope="module")
def cohort():
    rng = np.random.default_rng(0)
    malignant = rng.random(2000) < 0.65
    rows = [draw_row(f"HCC_{i:03d}", rng, malignant=bool(t)) for i, t in enumerate(malignant)]
    return pd.DataFrame(rows), malignant


def features(table, columns, dropped=0.0):
    """Standardised columns, one-hot categories; a dropped value is 0."""
    rng, blocks = np.random.default_rng(1), []
    for name in columns:
        if name in ("age", "AFP", "OS", "TTP", "1_RECIST_BL", "Interval_FU"):
            values = np.log1p(table[name].astype(float))
            block = ((values - values.mean()) / values.std()).fillna(0).to_numpy()[:, None].copy()
        else:
            block = pd.get_dummies(table[name].astype(str)).to_numpy(float)
            block = block - block.mean(axis=0)
        block[rng.random(len(table)) < dropped] = 0
        blocks.append(block)
    return np.hstack(blocks)


def accuracy(cohort, columns, dropped=0.0):
    x, y = features(cohort[0], columns, dropped), cohort[1]
    return LogisticRegression(max_iter=3000).fit(x[:1000], y[:1000]).score(x[1000:], y[1000:])


def test_the_row_known_before_treatment_tells_what_the_image_does_not(cohort):
    assert accuracy(cohort, BEFORE) >= 0.97
    assert 0.85 <= accuracy(cohort, BEFORE, dropped=0.5) <= 0.96


def test_no_single_variable_and_nothing_after_treatment_tells_it(cohort):
    majority = max(cohort[1].mean(), 1 - cohort[1].mean())
    assert max(accuracy(cohort, [name]) for name in ("AFP", "Evidence_of_cirh", "hepatitis", "TNM", "BCLC")) < 0.94
    assert accuracy(cohort, AFTER) < majority + 0.03


def test_derived_columns_follow_from_their_sources(cohort):
    table = cohort[0]
    assert ((table["AFP"].astype(float) >= 400) == (table["AFP_group"] == ">=400")).all()
    assert ((table["age"] > 70) == (table["agegp"] == ">70")).all()
    score = table["CLIP_Score"].str[-1].astype(int)
    assert ((score <= 2) == (table["CLIP"] == "Stage_ 0-2")).all()
    assert ((table["Metastasis"] == 1) == (table["TNM"] == "Stage-IVB")).all()


def test_cells_are_missing_as_often_as_in_the_real_table(cohort):
    table = cohort[0]
    assert table["Tr_Size"].isna().mean() == pytest.approx(MISSING_RATES["Tr_Size"], abs=0.04)
    assert (table["chemotherapy"] == "NA").mean() == pytest.approx(17 / 105, abs=0.03)
    assert table["1_RECIST"].isna().mean() == pytest.approx(9 / 105, abs=0.02)
    assert table["3_RECIST"].isna().mean() == pytest.approx(10 / 105, abs=0.02)
    assert table["Interval_FU"].isna().mean() == pytest.approx(8 / 105, abs=0.02)
    whole = table.drop(columns=[c for c in COLUMNS if "RECIST" in c or "EASL" in c or c in ("Tr_Size", "Interval_FU")])
    assert not whole.isna().any().any()


def test_columns_spellings_and_missing_cells_of_the_real_table(cohort):
    if not REAL_TABLE.is_file():
        pytest.skip(f"the real table is not at {REAL_TABLE} (REAL_DATA_DIR)")
    rows = list(openpyxl.load_workbook(REAL_TABLE)["data table"].iter_rows(values_only=True))
    real = pd.DataFrame(rows[1:], columns=rows[0])
    assert tuple(rows[0]) == COLUMNS
    for name in COLUMNS[1:]:
        gap = (real[name].isna() | (real[name] == "NA")).mean()
        ours = cohort[0][name]
        assert (ours.isna() | (ours == "NA")).mean() == pytest.approx(gap, abs=0.04), name
        values = set(real[name].dropna())
        if any(isinstance(v, str) for v in values) or len(values) < 6:
            assert set(ours.dropna()) <= values, name
        else:
            assert real[name].min() * 0.3 - 30 <= ours.astype(float).median() <= real[name].max(), name


def test_spreadsheet_is_written_as_the_real_one(tmp_path):
    rows = [draw_row(f"HCC_{i:03d}", np.random.default_rng(i), malignant=bool(i % 2)) for i in range(1, 6)]
    write_spreadsheet(tmp_path / "a.xlsx", rows)
    write_spreadsheet(tmp_path / "b.xlsx", rows)
    assert (tmp_path / "a.xlsx").read_bytes() == (tmp_path / "b.xlsx").read_bytes()
    book = openpyxl.load_workbook(tmp_path / "a.xlsx")
    assert [row[0] for row in book["glossary"].iter_rows(values_only=True)] == list(GLOSSARY)
    for row, cells in zip(rows, list(book["data table"].iter_rows(values_only=True))[1:], strict=True):
        assert list(row.values()) == list(cells)

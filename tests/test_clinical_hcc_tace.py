"""The schema of HCC-TACE-Seg, and the real table where it is at hand."""

import warnings

import numpy as np
import pandas as pd
import pytest
from scripts.clinical import HCC_TACE_SCHEMA, ClinicalSchema, ClinicalTable, check, describe_table
from support import REAL_DATA

WORKBOOK = REAL_DATA / "hcc_tace" / "HCC-TACE-Seg_clinical_data-V2.xlsx"
needs_workbook = pytest.mark.skipif(not WORKBOOK.is_file(), reason=f"no {WORKBOOK}; set REAL_DATA_DIR")

OUTCOME = {"OS", "TTP", "Death_1_StillAliveorLostToFU_0", "Censored_0_progressed_1", "Interval_FU"}


def leaking(name):
    return name in OUTCOME or name.endswith("_FU") or name[:2] in ("1_", "2_", "3_")


def test_hcc_tace_schema_presets():
    schema = ClinicalSchema.from_yaml(HCC_TACE_SCHEMA)
    names = [c.name for c in schema.columns]
    assert len(names) == 26
    assert schema.n_features == 32
    assert not [n for n in names if leaking(n)]
    assert not {"agegp", "AFP_group", "CLIP_Score", "CLIP"} & set(names)
    with pytest.warns(UserWarning, match="leak") as caught:
        paper = ClinicalSchema.from_yaml(HCC_TACE_SCHEMA, preset="paper")
    assert len(paper.columns) == 56
    assert len(paper.feature_names) == paper.n_features == 65
    assert all(name in str(caught[0].message) for name in [c.name for c in paper.columns if leaking(c.name)])
    assert {c.name for c in paper.columns if c.known == "after"} == {c.name for c in paper.columns if leaking(c.name)}
    assert all(c.description for c in paper.columns)


@pytest.fixture(scope="module")
def real():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        paper = ClinicalSchema.from_yaml(HCC_TACE_SCHEMA, preset="paper")
    return ClinicalTable(path=WORKBOOK, schema=paper)


@needs_workbook
def test_real_table_is_read_completely(real):
    assert len(real.patient_ids) == 105
    assert not real.problems
    assert not real.absent
    assert not real.ignored
    missing = describe_table(real).set_index("column")["missing"]
    missing = missing[missing > 0].to_dict()
    assert missing.pop("Tr_Size") == 52
    assert missing.pop("chemotherapy") == 17
    assert missing.pop("Interval_FU") == 8
    assert missing.pop("Pathology") == 22  # not stated 15, no biopsy 7
    assert set(missing.values()) == {9, 10}
    assert len(missing) == 21


@needs_workbook
def test_real_derived_columns_are_functions_of_the_others(real):
    cells = pd.DataFrame(real.codes, columns=[c.name for c in real.schema.columns])
    assert (cells["agegp"] == np.digitize(cells["age"], [40, 50, 60, 70], right=True)).all()
    assert (cells["AFP_group"] == (cells["AFP"] >= 400)).all()
    assert (cells["CLIP"] == np.digitize(cells["CLIP_Score"], [3, 4])).all()
    extent = np.where(cells["T_involvment"] == 1, 2, cells["tumor_nodul"])
    score = cells["CPS"] + extent + (cells["AFP"] >= 400) + cells["Portal Vein Thrombosis"]
    assert (cells["CLIP_Score"] == score).all()


@needs_workbook
def test_real_baseline_readings_exist_only_with_a_follow_up(real):
    cells = pd.DataFrame(real.codes, columns=[c.name for c in real.schema.columns])
    for name in [n for n in cells if n.endswith("CIST_BL") or n.endswith("EASL_BL")]:
        assert (cells[name].isna() == cells[name.replace("_BL", "_FU")].isna()).all()


@needs_workbook
def test_real_vectors(real):
    schema = ClinicalSchema.from_yaml(HCC_TACE_SCHEMA)
    table = ClinicalTable(path=WORKBOOK, schema=schema)
    table.fit(table.patient_ids)
    vectors = np.stack([table.vector(p) for p in table.patient_ids])  # (105, 32)
    scaled = [i for i, g in enumerate(schema.groups) if schema.columns[g].kind != "nominal"]
    np.testing.assert_allclose(np.nanmean(vectors[:, scaled], axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(np.nanstd(vectors[:, scaled], axis=0), 1, atol=1e-5)
    assert np.nanmax(np.abs(vectors)) < 8


@needs_workbook
def test_real_check():
    assert check(str(WORKBOOK)).endswith("no problems")

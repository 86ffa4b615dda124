"""Clinical rows for phantom patients, spelled and coded as in the spreadsheet of HCC-TACE-Seg.

Each patient has one hidden fact, ``malignant``: whether the indeterminate nodules of the image are tumour. The image
says nothing about it. Here it drives a dozen variables known *before* treatment, each only partly, so that the whole
row tells it and half a row still tells most of it. Derived variables (age group, AFP group, CLIP, BCLC, TNM, Okuda)
follow their definitions. What is only known after treatment is random and says nothing.
"""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openpyxl

MALIGNANT_RATE = 0.65
ID_COLUMN = "TCIA_ID"
SHEETS = ("data table", "glossary")
SPREADSHEET = "HCC-TACE-Seg_clinical_data-V2.xlsx"
_RESPONSES = ("1_EASL", "1_RECIST", "2_RECIST", "3_RECIST", "1_mRECIST", "2_mRECIST", "3_mRECIST")
GLOSSARY = {
    "TCIA_ID": "Patient ID",
    "Interval_BL": "Days from the baseline CT to the diagnosis",
    "Interval_FU": "Weeks from the baseline study to the follow-up study",
    "TTP": "Time to progression (weeks)",
    "Death_1_StillAliveorLostToFU_0": "Died at follow-up = 1, alive or lost to follow-up = 0",
    "Censored_0_progressed_1": "Censored = 0, progressed = 1",
    "OS": "Overall survival (weeks)",
    "hepatitis": "Viral hepatitis: HCV, HBV, both or none",
    "age": "Age in years at diagnosis",
    "agegp": "Age group: <=40, 41-50, 51-60, 61-70, >70",
    "Sex": "1=Male, 2=Female",
    "Smoking": "Y = 1 N = 0",
    "Alcohol": "Y = 1 N = 0",
    "fhx_can": "Family history of cancer, Y = 1 N = 0",
    "fhx_livc": "Family history of liver cancer, Y = 1 N = 0",
    "Diabetes": "Y = 1 N = 0",
    "Personal history of cancer": "Y = 1 N = 0",
    "Evidence_of_cirh": "Evidence of cirrhosis, Y = 1 N = 0",
    "Pathology": "Pathological grade",
    "PS_bclc_0_0_1-2_1_3-4_3": "Performance status for BCLC: 0, 1 (stage 1 or 2), 3 (stage 3 or 4)",
    "CPS": "Child-Pugh class A, B, C",
    "Tr_Size": "Tumour size (cm)",
    "tumor_nodul": "Uninodular or multinodular",
    "Vascular invasion": "Y = 1 N = 0",
    "Metastasis": "Y = 1 N = 0",
    "Lymphnodes": "Y = 1 N = 0",
    "Portal Vein Thrombosis": "Y = 1 N = 0",
    "T_involvment": "Share of the liver that is tumour: < or = 50%, >50%",
    "AFP": "Alpha-fetoprotein (ng/ml)",
    "AFP_group": "AFP <400 or >=400 ng/ml",
    "CLIP_Score": "Cancer of the Liver Italian Program score",
    "CLIP": "CLIP score group",
    "Okuda": "Okuda stage",
    "TNM": "TNM stage",
    "BCLC": "Barcelona Clinic Liver Cancer stage",
    "chemotherapy": "Drugs used in the procedure",
}
for _name in _RESPONSES:
    _reader, _criterion = _name.split("_")
    GLOSSARY[f"{_name}_BL"] = f"{_criterion}, reader {_reader}, baseline study"
    GLOSSARY[f"{_name}_FU"] = f"{_criterion}, reader {_reader}, follow-up study"
    GLOSSARY[_name] = f"{_criterion}, reader {_reader}, treatment response"
COLUMNS = tuple(GLOSSARY)

# How often a cell is empty in the real table of 105 patients. `chemotherapy` is never empty: it says "NA".
MISSING_RATES = {
    "Tr_Size": 52 / 105,
    "chemotherapy": 17 / 105,
    "Interval_FU": 8 / 105,
    "reader 1 and 2": 9 / 105,
    "reader 3, given 1 and 2": 1 / 96,
}

# P(variable | benign), P(variable | malignant) of the variables that carry the hidden fact.
EFFECTS = {
    "Evidence_of_cirh": (0.35, 0.88),
    "Vascular invasion": (0.08, 0.50),
    "Portal Vein Thrombosis": (0.04, 0.34),
    "multinodular": (0.22, 0.76),
    "involved": (0.05, 0.36),
    "Alcohol": (0.28, 0.68),
    "Smoking": (0.34, 0.72),
    "Diabetes": (0.20, 0.55),
    "performance": (0.25, 0.72),
    "Child-Pugh B": (0.06, 0.38),
    "Lymphnodes": (0.04, 0.28),
    "Personal history of cancer": (0.42, 0.10),
}
HEPATITIS = {"No virus": (0.80, 0.24), "HCV only": (0.10, 0.42), "HBV only": (0.06, 0.12), "HCV and HBV": (0.04, 0.22)}
PATHOLOGY = {
    "Well differentiated": (0.62, 0.20),
    "Moderately differentiated": (0.12, 0.42),
    "Poorly differentiated": (0.03, 0.18),
    "NOT STATED": (0.13, 0.12),
    "No biopsy": (0.08, 0.05),
    "Well-moderately differentiated": (0.01, 0.02),
    "Moderately-poorly differentiated": (0.01, 0.01),
}
LOG_AFP = ((np.log(7.0), 1.3), (np.log(420.0), 1.8))  # mean and standard deviation of ln(ng/ml), benign and malignant


def draw_row(patient_id: str, rng: np.random.Generator, *, malignant: bool, tumour_cm: float = 4.6) -> dict[str, Any]:
    """Draws the clinical row of one patient.

    Args:
        patient_id: value of the id column.
        rng: source of randomness.
        malignant: the hidden fact.
        tumour_cm: diameter of the largest definite tumour in cm.

    Returns:
        dict: column name -> value as the spreadsheet holds it; None is an empty cell.
    """
    t = int(malignant)
    has = {name: int(rng.random() < rates[t]) for name, rates in EFFECTS.items()}
    row: dict[str, Any] = dict.fromkeys(COLUMNS)
    age = int(np.clip(rng.normal(67, 11), 31, 93))
    afp = round(float(np.clip(np.exp(rng.normal(*LOG_AFP[t])), 1.4, 566530.0)), 1)
    cps = "C" if rng.random() < 0.01 else "B" if has["Child-Pugh B"] else "A"
    performance = 3 if rng.random() < 0.02 else has["performance"]
    row |= {
        ID_COLUMN: patient_id,
        "Interval_BL": int(np.clip(rng.normal(20, 60), -303, 868)),
        "hepatitis": _choose(HEPATITIS, t, rng),
        "age": age,
        "agegp": _group(age, (40, 50, 60, 70), ("<=40", "41-50", "51-60", "61-70", ">70")),
        "Sex": 1 if rng.random() < 0.65 else 2,
        **{
            name: has[name]
            for name in (
                "Smoking",
                "Alcohol",
                "Diabetes",
                "Personal history of cancer",
                "Lymphnodes",
                "Evidence_of_cirh",
                "Vascular invasion",
                "Portal Vein Thrombosis",
            )
        },
        "fhx_can": int(rng.random() < 0.62),
        "fhx_livc": int(rng.random() < 0.07),
        "Pathology": _choose(PATHOLOGY, t, rng),
        "PS_bclc_0_0_1-2_1_3-4_3": performance,
        "CPS": cps,
        "Tr_Size": _as_cell(round(tumour_cm, 1)),
        "tumor_nodul": "multinodular" if has["multinodular"] else "uninodular",
        "Metastasis": int(rng.random() < 0.07),
        "T_involvment": ">50%" if has["involved"] else "< or = 50%",
        "AFP": _as_cell(afp),
        "AFP_group": ">=400" if afp >= 400 else "<400",
    }
    row |= _stages(row)
    row |= _after_treatment(rng)
    _empty_cells(row, rng)
    return row


def _stages(row: dict[str, Any]) -> dict[str, str]:
    """Stages that follow from the other columns, by their published definitions as far as the columns allow."""
    multi, large = row["tumor_nodul"] == "multinodular", row["T_involvment"] == ">50%"
    invasion = bool(row["Vascular invasion"] or row["Portal Vein Thrombosis"])
    child = "ABC".index(row["CPS"])
    clip = min(child + (2 if large else int(multi)) + int(row["AFP"] >= 400) + row["Portal Vein Thrombosis"], 5)
    spread = bool(row["Metastasis"] or row["Lymphnodes"] or invasion)
    performance = row["PS_bclc_0_0_1-2_1_3-4_3"]
    if performance == 3 or child == 2:
        bclc = "Stage-D"
    elif performance == 1 or spread:
        bclc = "Stage-C"
    else:
        bclc = "Stage-B" if multi else "Stage-A"
    if row["Metastasis"]:
        tnm = "Stage-IVB"
    elif row["Lymphnodes"]:
        tnm = "Stage-IVA"
    elif invasion:
        tnm = "Stage-IIIB"
    elif multi:
        tnm = "Stage-IIIA" if large else "Stage-II"
    else:
        tnm = "Stage-I"
    return {
        "CLIP_Score": f"Stage_{clip}",
        "CLIP": "Stage_ 0-2" if clip <= 2 else "Stage_3" if clip == 3 else "Stage_4-6",
        "Okuda": ("Stage I", "Stage II", "Stage III")[min(int(large) + min(child, 1) + int(child == 2), 2)],
        "TNM": tnm,
        "BCLC": bclc,
    }


def _after_treatment(rng: np.random.Generator) -> dict[str, Any]:
    survival = round(float(np.clip(rng.lognormal(np.log(105), 0.8), 6.9, 474)), 2)
    values: dict[str, Any] = {
        "Interval_FU": _as_cell(round(float(np.clip(rng.gamma(4, 3.5), 2, 30.3)), 2)),
        "TTP": _as_cell(round(min(survival, float(rng.lognormal(np.log(21), 0.9))), 2)),
        "Death_1_StillAliveorLostToFU_0": int(rng.random() < 0.89),
        "Censored_0_progressed_1": int(rng.random() < 0.43),
        "OS": _as_cell(survival),
        "chemotherapy": str(
            rng.choice(
                ["Cisplatin, doxorubicin, Mitomycin-C", "doxorubicin LC beads", "Cisplatin, Mitomycin-C"],
                p=[0.59, 0.38, 0.03],
            )
        ),
    }
    for name in _RESPONSES:
        area = "EASL" in name
        before = float(rng.lognormal(np.log(1740 if area else 68), 1.1 if area else 0.5))
        change = float(rng.uniform(0, 1.1) if "RECIST" not in name or "m" in name else rng.normal(0.9, 0.2))
        digits = 0 if name.startswith("2_") else 1
        values[f"{name}_BL"] = _as_cell(round(before, digits))
        values[f"{name}_FU"] = _as_cell(round(before * max(change, 0.0), digits))
        values[name] = 1 if change < 0.05 else 2 if change < 0.7 else 3 if change < 1.2 else 4
        if area:
            values[name] = 3 if change < 0.25 else 4
    return values


def _empty_cells(row: dict[str, Any], rng: np.random.Generator) -> None:
    draws = {name: rng.random() < rate for name, rate in MISSING_RATES.items()}
    if draws["Tr_Size"]:
        row["Tr_Size"] = None
    if draws["Interval_FU"]:
        row["Interval_FU"] = None
    if draws["chemotherapy"]:
        row["chemotherapy"] = "NA"
    for name in _RESPONSES:
        if draws["reader 1 and 2"] or (name.startswith("3_") and draws["reader 3, given 1 and 2"]):
            row |= {f"{name}_BL": None, f"{name}_FU": None, name: None}


def _choose(rates: dict[str, tuple[float, float]], malignant: int, rng: np.random.Generator) -> str:
    return str(rng.choice(list(rates), p=[rate[malignant] for rate in rates.values()]))


def _group(value: float, edges: Sequence[float], names: Sequence[str]) -> str:
    return names[sum(value > edge for edge in edges)]


def _as_cell(value: float) -> int | float:
    """Whole numbers are stored without decimals, as a spreadsheet does."""
    return int(value) if float(value).is_integer() else float(value)


def write_spreadsheet(path: str | Path, rows: Sequence[dict[str, Any]]) -> None:
    """Writes the clinical table with the sheets and columns of the real download.

    Args:
        path: the ``.xlsx`` file to write.
        rows: one dict per patient, as :func:`draw_row` returns.
    """
    book = openpyxl.Workbook()
    table = book.active
    table.title = SHEETS[0]
    table.append(list(COLUMNS))
    for row in rows:
        table.append([row[name] for name in COLUMNS])
    glossary = book.create_sheet(SHEETS[1])
    for item in GLOSSARY.items():
        glossary.append(list(item))
    buffer = io.BytesIO()
    book.save(buffer)
    with zipfile.ZipFile(buffer) as made, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for name in made.namelist():  # without the time of writing, so that the same rows give the same bytes
            content = re.sub(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", b"2000-01-01T00:00:00Z", made.read(name))
            target.writestr(zipfile.ZipInfo(name, (2000, 1, 1, 0, 0, 0)), content, zipfile.ZIP_DEFLATED)

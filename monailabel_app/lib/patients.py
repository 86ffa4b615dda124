"""Whose image it is, and what is known of that patient: from the table, from the request, or nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scripts.clinical import ClinicalTable
from scripts.clinical_schema import suggestion
from scripts.datalists import patient_name

PREFIX = "clinical."  # of a request's key for one column: clients show one field for each
UNKNOWN = "unknown"


@dataclass(frozen=True)
class Row:
    """What the network is told of a patient, by column (None: nothing), and what the client is told of that."""

    values: dict[str, Any] | None
    told: dict[str, Any]


def patient_of(image_id: str, info: Mapping[str, Any], known: tuple[str, ...] = ()) -> str:
    """The patient of an image.

    Args:
        image_id: id of the image in the datastore.
        info: what the datastore knows of the image; ``PatientID`` where it came as DICOM.
        known: the patients of the clinical table.

    Returns:
        The DICOM PatientID; else the image's id if it is in the table; else that id without ``_frame<number>``.
    """
    named = str(info.get("PatientID") or "").strip()
    return named or (image_id if image_id in known else patient_name(image_id))


def find_row(table: ClinicalTable | None, patient: str, request: Mapping[str, Any]) -> Row:
    """Find the clinical row of a patient, and lay the request's values over it.

    Args:
        table: the network's table; None: it takes no clinical variables.
        patient: the patient's id.
        request: the client's parameters: ``clinical`` (column to value) and ``clinical.<column>``; empty values are
            left to the table, ``unknown`` and what stands for it in the table's cells make a value unknown.

    Returns:
        The row.

    Raises:
        ValueError: values for a network that takes none, an unknown column, or a value that the schema refuses.
    """
    given = overrides(request)
    if table is None:
        if given:
            raise ValueError(f"The network takes no clinical variables; leave out {', '.join(given)}.")
        return Row(None, {"source": "none", "message": "The network takes no clinical variables."})
    names = [column.name for column in table.schema.columns]
    for name in given:
        if name not in names:
            raise ValueError(f"There is no clinical column {name!r}{suggestion(name, names)}; there are {names}.")
    row = _values(table, patient)
    told: dict[str, Any] = {"patient": patient, "source": "none" if row is None else "table"}
    if given:
        values = (row or {}) | given
        values = {name: value for name, value in values.items() if str(value).strip().lower() != UNKNOWN}
        table.encode(values)  # refuses now what it would refuse during preprocessing
        columns = {column.name: column for column in table.schema.columns}
        values = {name: value for name, value in values.items() if not np.isnan(columns[name].parse(value))}
        told |= {"source": "request" if row is None else "table and request", "overrides": given}
    else:
        values = row or {}
    told |= {"values": values, "unknown": [name for name in names if name not in values]}
    if not values:
        told["message"] = f"Nothing is known of patient {patient!r}: the network was told so."
    return Row(None if row is None and not given else values, told)


def overrides(request: Mapping[str, Any]) -> dict[str, Any]:
    """The clinical values in a client's parameters, by column."""
    whole = request.get("clinical") or {}
    if not isinstance(whole, Mapping):
        raise ValueError(f"clinical is {whole!r}; expected an object, column to value.")
    single = {key.removeprefix(PREFIX): value for key, value in request.items() if key.startswith(PREFIX)}
    single = {key: value[0] if isinstance(value, list) and value else value for key, value in single.items()}
    given = {str(key): value for key, value in {**whole, **single}.items()}
    return {key: value for key, value in given.items() if value is not None and str(value).strip() != ""}


def _values(table: ClinicalTable, patient: str) -> dict[str, Any] | None:
    """The known values of a patient's row, as the table's schema reads them; None if there is no row."""
    if patient not in table.patient_ids:
        return None
    codes = table.codes[table.patient_ids.index(patient)]
    return {
        column.name: float(code) if column.kind == "numeric" else column.categories[int(code)]
        for column, code in zip(table.schema.columns, codes, strict=True)
        if not np.isnan(code)
    }

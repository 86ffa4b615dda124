import openpyxl
import pytest
from scripts.clinical import HCC_TACE_SCHEMA, ClinicalSchema, ClinicalTable
from scripts.prepare.output import write_clinical_csv
from scripts.prepare.spreadsheet import read_clinical_table

HEADER = ["TCIA_ID", "age", "AFP"]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_what_trains_also_prepares(tmp_path, delimiter):
    path = tmp_path / "clinical.csv"
    quoted = ["HCC_001", "50", '"7.5"']
    path.write_text(delimiter.join(HEADER) + "\n" + delimiter.join(quoted) + "\n", encoding="utf-8-sig")
    table = read_clinical_table(tmp_path, str(path), id_column="TCIA_ID")
    assert table.header == HEADER
    assert table.rows == {"HCC_001": ["HCC_001", "50", "7.5"]}
    write_clinical_csv(tmp_path / "out.csv", table.header, table.rows.values())
    schema = ClinicalSchema.from_yaml(HCC_TACE_SCHEMA, columns=["age", "AFP"])
    codes = [ClinicalTable(path=file, schema=schema).codes.tolist() for file in (path, tmp_path / "out.csv")]
    assert codes == [[[50.0, 7.5]]] * 2


def test_cells_of_a_workbook_stay_as_they_are(tmp_path):
    book = openpyxl.Workbook()
    book.active.append(["notes"])
    page = book.create_sheet("data table")
    for row in (HEADER, ["HCC_001", 50, 1573.87], [None] * 3, ["HCC_002", None, "NA"]):
        page.append(row)
    book.save(tmp_path / "a.xlsx")
    table = read_clinical_table(tmp_path, id_column="TCIA_ID")
    write_clinical_csv(tmp_path / "out.csv", table.header, table.rows.values())
    assert (tmp_path / "out.csv").read_text() == "TCIA_ID,age,AFP\nHCC_001,50,1573.87\nHCC_002,,NA\n"


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "is empty"),
        ("id,age\nHCC_001,50\n", "has no column 'TCIA_ID'"),
        ("age,TCIA_ID\n50,HCC_001\n50\n", "row 3: no patient id in column 'TCIA_ID'"),
        ("TCIA_ID,age\nHCC_001,50\nHCC_001,51\n", "two rows for HCC_001; delete one"),
        ("TCIA_ID,age\nHCC_001,50,7\n", "row 2 has 3 cells, but the header has 2"),
    ],
)
def test_tables_that_cannot_be_used_are_refused(tmp_path, text, match):
    (tmp_path / "c.csv").write_text(text)
    with pytest.raises(ValueError, match=match):
        read_clinical_table(tmp_path, str(tmp_path / "c.csv"), id_column="TCIA_ID")

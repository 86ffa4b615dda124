import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from scripts.terms import keep_terms, read_terms


def test_the_same_terms_are_accepted_again_and_others_named(tmp_path):
    file = tmp_path / "run" / "terms.json"
    keep_terms(file, {"epochs": 3, "sizes": (1, 2)}, "they differ")
    keep_terms(file, {"sizes": [1, 2], "epochs": 3}, "they differ")
    for other in ({"epochs": 4, "sizes": [1, 2]}, {"epochs": 3}, {"epochs": 3, "sizes": [1, 2], "seed": 1}):
        with pytest.raises(ValueError, match="was begun with other terms: .*they differ"):
            keep_terms(file, other, "they differ")
    assert read_terms(file) == {"epochs": 3, "sizes": [1, 2]}


def test_several_processes_at_once(tmp_path):
    file = tmp_path / "terms.json"
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: keep_terms(file, {"a": 1}, "x"), range(40)))
    assert json.loads(file.read_text()) == {"a": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["terms.json"]


def test_damaged_file(tmp_path):
    (tmp_path / "terms.json").write_text("{")
    with pytest.raises(ValueError, match="Delete it to begin anew"):
        read_terms(tmp_path / "terms.json")

"""The scores of a version as columns, as a file, and as lines of the scoring process."""

import numpy as np
import pytest
from app_support import scored
from scripts.acquisition import SCORES

from monailabel_app.lib.scoring.table import COLUMNS, Table
from monailabel_app.lib.scoring.worker import from_json, to_json


class TestTable:
    def test_file_gives_back_every_value(self, tmp_path):
        table = Table().extended({"a": scored(0.1), "b": scored(0.2)}).extended({"c": scored(0.3), "a": scored(0.9)})
        table.save(tmp_path / "t.npz")
        again = Table.load(tmp_path / "t.npz")
        assert again.ids == ["a", "b", "c"]
        for name in COLUMNS:
            np.testing.assert_array_equal(again.columns[name], table.columns[name])
        assert again.scores_of("a") == pytest.approx({"entropy": 0.1, "epistemic": 0.05})
        assert again.scores_of("z") == {}

    def test_pool_has_nan_where_nothing_is_known(self):
        pool = Table().extended({"a": scored(0.1), "b": scored(0.2)}).pool(["b", "new", "a"])
        np.testing.assert_allclose(pool.scores["entropy"], [0.2, np.nan, 0.1], rtol=1e-6)
        assert np.isnan(pool.scores["tta"]).all()
        np.testing.assert_allclose(pool.class_entropy[:, 0], [0.2, np.nan, 0.1], rtol=1e-6)
        assert pool.distances.between([0]).shape == (3, 1)

    def test_empty(self, tmp_path):
        assert len(Table().pool(["a"]).ids) == 1
        assert set(Table().pool(["a"]).scores) == set(SCORES)
        assert len(Table.load(tmp_path / "none.npz")) == 0

    @pytest.mark.parametrize("keep", [0, 10, 400])
    def test_damaged_file_is_scored_again(self, tmp_path, keep):
        file = tmp_path / "t.npz"
        Table().extended({"a": scored(0.1)}).save(file)
        file.write_bytes(file.read_bytes()[:keep])
        assert len(Table.load(file)) == 0

    def test_foreign_file_is_scored_again(self, tmp_path):
        np.savez(tmp_path / "t.npz", ids=np.array(["a", "b"]), **{name: np.zeros((1, 1)) for name in COLUMNS})
        assert len(Table.load(tmp_path / "t.npz")) == 0

    def test_kill_during_the_write_leaves_the_old_file(self, tmp_path, monkeypatch):
        file = tmp_path / "t.npz"
        Table().extended({"a": scored(0.1)}).save(file)

        def killed(*_, **__):
            raise KeyboardInterrupt

        monkeypatch.setattr(np, "savez", killed)
        with pytest.raises(KeyboardInterrupt):
            Table().extended({"b": scored(0.1)}).save(file)
        assert Table.load(file).ids == ["a"]

    def test_line_of_the_worker(self):
        name, found = from_json(to_json("a", scored(0.25)))
        assert name == "a"
        assert found.scores == {"entropy": 0.25, "epistemic": 0.125}
        np.testing.assert_array_equal(found.clinical, scored(0).clinical)
        assert from_json('{"id": "b", "error": "no such file"}') == ("b", "no such file")

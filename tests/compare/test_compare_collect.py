"""Run folders become variants; what cannot be compared is refused."""

import pytest
from compare_support import write_run
from scripts.compare.analysis import TOTAL, analyse
from scripts.compare.collect import differences, read_runs, scores

CASES = {"p1_frame01": (0.9, 0.5), "p1_frame09": (0.8, 0.4), "p2_frame01": (0.7, 0.6)}
FUSED = {"fusion_def": {"_target_": "scripts.networks.CrossAttentionFusion"}}


def test_names_come_from_the_command_and_the_configuration(tmp_path):
    write_run(tmp_path / "a", CASES, command="nny train /d /r dataset_acdc,network_unet")
    write_run(tmp_path / "b", CASES, command="nny train /d /r network_unet", config=FUSED)
    write_run(tmp_path / "c", CASES, note={"network": "unet+flat", "peak_gb": 1.5})
    write_run(tmp_path / "d", CASES, config={"network_def": {"encoder": {"_target_": "scripts.networks.SwinEncoder"}}})
    runs = read_runs([tmp_path, f"mine={tmp_path / 'a'}"][:1])
    assert [run.name for run in runs] == ["unet", "unet + cross_attention", "unet+flat", "Swin"]
    assert [run.name for run in read_runs([f"mine={tmp_path / 'a'}", tmp_path / "b"])][0] == "mine"


def test_runs_of_one_name_and_other_settings_are_two_variants(tmp_path):
    for name, rate in (("slow", 0.001), ("fast", 0.01)):
        write_run(tmp_path / name, CASES, command="x network_unet", config={"learning_rate": rate})
    runs = read_runs([tmp_path / "slow", tmp_path / "fast"])
    assert [run.name for run in runs] == ["unet (slow)", "unet (fast)"]
    table = differences(runs)
    assert table.loc["learning_rate"].to_dict() == {"unet (slow)": "0.001", "unet (fast)": "0.01"}


def test_scores_know_patient_group_and_seed(tmp_path):
    groups = {"p1_frame01": "A", "p1_frame09": "A", "p2_frame01": "B"}
    write_run(tmp_path / "a", CASES, seed=3, groups=groups, patients={case: case[:2] for case in CASES})
    write_run(tmp_path / "b", CASES, seed=4, groups=groups, patients={case: case[:2] for case in CASES})
    table = scores(read_runs([tmp_path]))
    assert len(table) == 12
    assert set(table["seed"]) == {3, 4}
    assert table[table["case_id"] == "p1_frame09"][["patient", "group"]].drop_duplicates().to_numpy().tolist() == [
        ["p1", "A"]
    ]


def test_seeds_are_averaged_and_the_total_is_the_mean_of_the_classes(tmp_path):
    command = "nny train network_unet"
    lower = {case: (liver - 0.1, tumour) for case, (liver, tumour) in CASES.items()}
    write_run(tmp_path / "a", CASES, seed=0, command=command)
    write_run(tmp_path / "b", lower, seed=1, command=command)
    found = analyse(read_runs([tmp_path]))
    (variant,) = found.variants
    cell = found.cell(variant, TOTAL, "dice")
    assert cell["mean"] == pytest.approx((0.675 + 0.575 + 0.625) / 3)  # cases, of two seeds and two classes
    assert cell["seed_std"] == pytest.approx(0.05 / 2**0.5)
    assert found.cell(variant, "tumour", "dice")["mean"] == pytest.approx(0.5)
    assert found.classes == ["liver", "tumour", TOTAL]
    assert found.ranks is None


def test_what_cannot_be_compared_is_refused(tmp_path):
    write_run(tmp_path / "a", CASES)
    write_run(tmp_path / "b", {"other": (0.5, 0.5)}, command="x network_unet")
    with pytest.raises(ValueError, match="scored on 1 values of case_id.*nny evaluate"):
        read_runs([tmp_path])
    with pytest.raises(ValueError, match="give a name to one run folder"):
        read_runs([f"mine={tmp_path}"])
    with pytest.raises(FileNotFoundError, match="holds no evaluation"):
        read_runs([tmp_path / "a" / "evaluation"])
    with pytest.raises(ValueError, match="no runs to compare"):
        read_runs([])
    write_run(tmp_path / "again", CASES)
    with pytest.raises(ValueError, match="are both .* with seed 0"):
        read_runs([f"x={tmp_path / 'a'}", f"x={tmp_path / 'again'}"])
    with pytest.raises(ValueError, match="no metric 'dce'"):
        analyse(read_runs([tmp_path / "a"]), metric="dce")

import os

import pytest
import torch
from scripts.shares import by_itself, launched, own_share, share

TORCHRUN = {"RANK": "1", "WORLD_SIZE": "3", "LOCAL_RANK": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}


@pytest.fixture
def group(monkeypatch):
    for name, value in (TORCHRUN | {"TORCHELASTIC_RUN_ID": "x", "GROUP_RANK": "0"}).items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("count", [1, 2, 3, 7])
@pytest.mark.parametrize("items", [0, 1, 5, 6])
def test_every_item_is_dealt_once_and_evenly(items, count):
    parts = [share(range(items), (number, count)) for number in range(count)]
    assert sorted(item for part in parts for item in part) == list(range(items))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_processes_deal_out_the_share_of_their_job(monkeypatch, group):
    assert launched()
    assert own_share() == (1, 3)
    assert own_share("2/4") == (7, 12)
    every = {(job, rank): share(range(30), (job * 3 + rank, 12)) for job in range(4) for rank in range(3)}
    assert sorted(item for part in every.values() for item in part) == list(range(30))
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert not launched()
    assert own_share("2/4") == (2, 4)
    assert own_share() == (0, 1)


@pytest.mark.parametrize("text", ["4/4", "1", "-1/4", "a/b", "1/0", 3])
def test_something_else(text):
    with pytest.raises(ValueError, match="expected a number from 0 and how many there are"):
        own_share(text)


@pytest.mark.parametrize(("visible", "own"), [(None, "1"), ("4,6", "6")])
def test_a_process_by_itself_has_no_group_and_its_own_gpu(monkeypatch, group, visible, own):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    before = dict(os.environ)
    with by_itself():
        assert not launched()
        assert not set(TORCHRUN) & set(os.environ)
        assert os.environ["CUDA_VISIBLE_DEVICES"] == own
        assert os.environ["PATH"] == before["PATH"]
    assert dict(os.environ) == before


def test_process_without_a_gpu_beside_others_with_one_is_refused(monkeypatch, group):
    """It would train on the CPU, and nobody would know."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    before = dict(os.environ)
    with pytest.raises(RuntimeError, match="Process 1 found 1 GPUs. Start one process for each"), by_itself():
        pytest.fail("started")
    assert dict(os.environ) == before
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    with by_itself():
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "1"


def test_alone_nothing_changes(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    before = dict(os.environ)
    with by_itself():
        assert dict(os.environ) == before

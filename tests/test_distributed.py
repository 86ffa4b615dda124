"""One process is a group of one; several are tried in tests/e2e/test_multi_process.py."""

import pytest
import torch
from scripts import distributed


@pytest.fixture
def alone(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    distributed.start()
    yield
    distributed.stop()


def test_process_alone_leads(alone):
    assert not distributed.follows()
    assert torch.distributed.get_world_size() == 1
    distributed.start()  # a second time does nothing


def test_first_process_calls(alone):
    assert distributed.once(lambda a, b: a + b, 1, 2) == 3


def test_wrapped_network_shares_its_weights_and_allows_parts_without_gradient(alone):
    network = torch.nn.ModuleList([torch.nn.Linear(2, 1), torch.nn.Linear(2, 1)])
    network.forward = lambda x: network[0](x)
    wrapped = distributed.parallel(network)
    wrapped(torch.ones(1, 2)).sum().backward()
    assert network[0].weight.grad is not None
    assert wrapped.module is network


def test_without_a_group_a_process_leads():
    assert not torch.distributed.is_initialized()
    assert not distributed.follows()
    distributed.stop()


def test_device_is_that_of_the_process(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert distributed.device() == torch.device("cuda:3")


def test_more_processes_than_gpus(monkeypatch):
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("LOCAL_RANK", "2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(RuntimeError, match="Process 2 found 2 GPUs"):
        distributed.start()

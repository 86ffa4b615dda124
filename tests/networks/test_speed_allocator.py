"""The allocator's setting: taken on glibc, left alone elsewhere and where somebody has chosen."""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
import sys

import pytest
from scripts.networks.speed import allocator, tune_allocator

FAULTS = """
import resource, runpy, sys
import torch
torch.set_num_threads(1)
took = runpy.run_path(sys.argv[2])["tune_allocator"]() if sys.argv[1] == "tuned" else False
for _ in range(20):  # until blocks have found their places
    torch.ones(2**24)  # 64 MiB, above what glibc keeps by itself
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    torch.ones(2**24)
print(took, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the allocator is not glibc's")


@pytest.fixture(autouse=True)
def _no_choice(monkeypatch):
    for name in [*allocator.CHOICES, allocator.OPT_OUT]:
        monkeypatch.delenv(name, raising=False)


def page_faults(setting: str, **environment: str) -> tuple[bool, int]:
    command = [sys.executable, "-c", FAULTS, setting, allocator.__file__]  # without this package, for a quick start
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    took, faults = done.stdout.split()
    return took == "True", int(faults)


@glibc
def test_memory_is_kept():
    took, faults = page_faults("tuned")
    assert took
    assert faults * 20 < page_faults("untouched")[1]


@glibc
def test_opt_out():
    assert not page_faults("tuned", NNY_KEEP_ALLOCATOR="1")[0]


@pytest.mark.parametrize("name", allocator.CHOICES)
def test_choices_of_others_are_respected(monkeypatch, name):
    monkeypatch.setenv(name, "1")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: pytest.fail("the allocator was touched"))
    assert tune_allocator() is False


def test_other_systems_are_left_alone(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: pytest.fail("the allocator was touched"))
    assert tune_allocator() is False


def test_other_c_libraries_are_left_alone(monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())  # such as musl, which has no gnu_get_libc_version
    assert tune_allocator() is False

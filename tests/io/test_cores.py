import os

import pytest

from xycodec.io import cores


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Write files of control groups, those of a process in `/a/b`, that is bound to eight cores."""
    (tmp_path / "own").write_text("4:memory:/elsewhere\n0::/a/b\n")
    monkeypatch.setattr(cores, "_OWN", tmp_path / "own")
    monkeypatch.setattr(cores, "_GROUPS", tmp_path / "groups")
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)

    def write(files):
        for name, text in files.items():
            path = tmp_path / "groups" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    return write


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 8),
        ({"a/b/cpu.max": "max 100000\n"}, 8),
        ({"a/b/cpu.max": "400000 100000\n"}, 4),
        ({"a/b/cpu.max": "250000 100000\n"}, 2),
        ({"a/b/cpu.max": "50000 100000\n"}, 1),
        ({"a/b/cpu.max": "1600000 100000\n"}, 8),
        ({"a/b/cpu.max": "max 100000\n", "a/cpu.max": "300000 100000\n"}, 3),
        ({"cpu.max": "200000 100000\n"}, 2),
        ({"a/b/cpu.max": "nonsense"}, 8),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 8),
        ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3),
    ],
)
def test_the_smallest_limit_counts(machine, files, expected):
    machine(files)
    assert cores.available_cores() == expected


def test_a_system_without_control_groups(machine, monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert cores.available_cores() == 6
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert cores.available_cores() == 1


def test_here():
    assert 1 <= cores.available_cores() <= os.cpu_count()

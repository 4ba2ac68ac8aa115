"""scripts/check_out_of_core.py: both ways agree on a small volume, and failures are recognised."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import tyro

pytest.importorskip("zarr")
sys.path.append(str(Path(__file__).resolve().parent.parent / "scripts"))

import check_out_of_core


def check(capsys, *options):
    """Runs the script in this process. It starts others, which measure their memory."""
    status = check_out_of_core.main(tyro.cli(check_out_of_core.Options, args=options))
    return status, json.loads(capsys.readouterr().out)


def test_both_ways_agree(capsys):
    status, found = check(capsys, "--size", "72", "--block", "30", "--workers", "1")
    assert status == 0 and found["size"] == 72
    assert found["difference"] < 1e-7
    assert found["dask"]["peak_mb"] > 100


def test_too_much_memory_or_a_difference_is_a_failure(capsys, monkeypatch):
    """As told by processes that were not started; the test above starts them."""
    told = {"value": 0.5, "seconds": 1.0, "peak_mb": 200.0}

    def run(values, line, **_):
        assert line[:2] == [sys.executable, check_out_of_core.__file__]
        return SimpleNamespace(stdout=json.dumps(told | values[line[line.index("--only") + 1]]) + "\n")

    for value, limit, expected in ((0.5, "300", 0), (0.5, "100", 1), (0.5 + 2e-7, "300", 1)):
        values = {"dask": {"value": value}, "in-memory": {"peak_mb": 900.0}}
        started = SimpleNamespace(run=lambda *a, v=values, **b: run(v, *a, **b), PIPE=-1)
        monkeypatch.setattr(check_out_of_core, "subprocess", started)
        status, found = check(capsys, "--size", "8", "--limit-mb", limit)
        assert status == expected and found["dask"]["value"] == value

"""benchmarks/voxelize.py: its plain torch gives the same field, and its table."""

import csv
import sys

import pytest
import torch

from benchmarks import voxelize as benchmark_voxelize
from splat_ssim.volume import VoxelGrid, voxelize
from splat_ssim.volume.reference import mahalanobis_squared


def test_boxed_is_the_same_field(monkeypatch):
    monkeypatch.setattr(benchmark_voxelize, "CHUNK", 5000)  # Several chunks.
    tensors, _ = benchmark_voxelize.make_scene(60, 20)
    grid = VoxelGrid.regular((20, 19, 17))
    ours, plain = voxelize(*tensors, grid), benchmark_voxelize.boxed(*tensors, grid)
    torch.testing.assert_close(ours, plain, atol=2e-6, rtol=0)
    upstream = torch.rand(ours.shape, generator=torch.Generator().manual_seed(0))
    for a, b in zip(*(torch.autograd.grad(v, tensors, upstream) for v in (ours, plain)), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-5 * float(b.abs().max()))
    q = mahalanobis_squared(*tensors[:3], grid.points().reshape(-1, 3))
    assert benchmark_voxelize.contributions(tensors, grid) == pytest.approx(int((q <= 9).sum()), abs=2)


@pytest.mark.long
def test_the_table(tmp_path, monkeypatch):
    line = ["", "--cases", "40@24", "--threads", "1", "--repeat", "2", "--plain-repeat", "1"]
    monkeypatch.setattr(sys, "argv", [*line, "--dirty-ok", "--output", str(tmp_path)])
    threads = torch.get_num_threads()
    try:
        for _ in range(2):
            benchmark_voxelize.main()
            monkeypatch.setattr(sys, "argv", [*sys.argv, "--no-plain", "--modes", "forward"])
    finally:
        torch.set_num_threads(threads)
    with (tmp_path / "voxelize.csv").open() as file:
        rows = {(row["name"], row["mode"]): row for row in csv.DictReader(file)}
    # Measured again, our row was replaced and the other rows were kept.
    assert len(rows) == 4
    both = rows["splat_ssim", "forward+backward"]
    assert 0 < float(both["fma_share"]) < 1 and 0 < float(both["copy_share"]) < 1 and float(both["ratio"]) == 1
    assert float(rows["plain torch", "forward"]["ratio"]) > 1
    assert all(row["commit"] and row["torch"] and row["threads"] == "1" for row in rows.values())


@pytest.mark.parametrize("case", ["50000", "x@128", "50000@"])
def test_wrong_cases(case):
    with pytest.raises(ValueError, match="a case must be COUNT@SIDE"):
        benchmark_voxelize.parse_case(case)

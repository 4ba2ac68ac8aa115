"""A few rounds of `make kill-rounds`, and planted faults that its checks must find."""

import json
import shutil

import pytest

from splat_ssim._files import remove_leftovers
from tests.kill_rounds import WAYS, Ended, FindingError, Rounds, Strike, check_end, check_folder, check_same


@pytest.fixture(scope="module")
def rounds(tmp_path_factory):
    return Rounds(tmp_path_factory.mktemp("rounds"), seed=0, names=["image", "volume, capped", "scene"])


@pytest.mark.slow
@pytest.mark.parametrize("number", range(4))
def test_a_round(rounds, number):
    assert rounds.run(number).startswith(f"round {number} of seed 0: ")


def test_the_checks_see_damage(rounds, tmp_path):
    whole, _ = rounds.reference("image")
    copy = shutil.copytree(whole, tmp_path / "copy")
    check_folder(copy)
    check_same(copy, whole)

    def damaged(name, change):
        content = (copy / name).read_bytes()
        (copy / name).write_bytes(change(content))
        yield
        (copy / name).write_bytes(content)

    for name in ("checkpoint.pt", "metrics.json", "config.yaml", "gaussians.quantized", "gaussians.ply", "render.png"):
        for _ in damaged(name, lambda content: content[: len(content) // 2]):
            with pytest.raises(FindingError, match=name.replace(".", r"\.")):
                check_folder(copy)
                check_same(copy, whole)
    for _ in damaged("metrics.json", lambda content: json.dumps({**json.loads(content), "psnr": 0}).encode()):
        check_folder(copy)
        with pytest.raises(FindingError, match=r"metrics\.json differs"):
            check_same(copy, whole)
    (copy / "left.json.7.tmp").touch()
    with pytest.raises(FindingError, match=r"files of one run only: left\.json\.7\.tmp"):
        check_same(copy, whole)


@pytest.mark.parametrize("way", WAYS)
def test_the_ends_that_are_not_allowed(way):
    for status, told in ((3, ""), (1, "error: no\n"), (0, "Traceback (most recent call last):\n")):
        with pytest.raises(FindingError):
            check_end(Ended(status, 1.0, 1, told), Strike(way, seconds=0.0))


def test_leftovers_go_and_nothing_else(tmp_path):
    left = ("a.json.12.tmp", "eval/b.json.3.tmp", "checkpoint.pt.tmp", "v.zarr.5.tmp/v.zarr/c/0")
    for name in (*left, "mine.tmp", "a.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    remove_leftovers(tmp_path, ("config.yaml.*",))
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 6
    remove_leftovers(tmp_path)
    assert {path.name for path in tmp_path.rglob("*")} == {"mine.tmp", "a.json", "eval"}

import numpy as np
import pytest
import torch

import splat_ssim
from splat_ssim.ply import PlyError, ply_elements, read_ply


def make_splats(count: int = 5, rest: int = 15) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"means": (3,), "scales": (3,), "quats": (4,), "opacities": (), "sh0": (1, 3), "shN": (rest, 3)}
    return {name: torch.randn(count, *shape, generator=generator) for name, shape in shapes.items()}


@pytest.mark.parametrize("rest", [0, 3, 8, 15])
def test_round_trip(tmp_path, rest):
    splats = make_splats(rest=rest)
    splat_ssim.save_ply(tmp_path / "a.ply", splats)
    loaded = splat_ssim.load_ply(tmp_path / "a.ply")
    splats["quats"] = torch.nn.functional.normalize(splats["quats"], dim=-1)
    assert set(loaded) == set(splats)
    for name, value in splats.items():
        torch.testing.assert_close(loaded[name], value)
    assert not (tmp_path / "a.ply.tmp").exists()


def test_the_layout_is_the_standard_one(tmp_path):
    splats = make_splats(count=2)
    splat_ssim.save_ply(tmp_path / "a.ply", splats)
    data = (tmp_path / "a.ply").read_bytes()
    header, body = data.split(b"end_header\n", 1)
    lines = header.decode().splitlines()
    assert lines[:3] == ["ply", "format binary_little_endian 1.0", "element vertex 2"]
    names = [line.split()[2] for line in lines[3:]]
    expected = ["x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2"]
    expected += [f"f_rest_{i}" for i in range(45)] + ["opacity", "scale_0", "scale_1", "scale_2"]
    assert names == [*expected, "rot_0", "rot_1", "rot_2", "rot_3"]
    assert all(line.split()[1] == "float" for line in lines[3:])
    table = np.frombuffer(body, "<f4").reshape(2, 62)
    # Channels are the slowest axis: f_rest_16 is the second coefficient of green.
    assert table[1, names.index("f_rest_16")] == splats["shN"][1, 1, 1]
    assert table[0, names.index("opacity")] == splats["opacities"][0]


def test_gsplat_writes_the_same_file(tmp_path):
    from gsplat import export_splats

    splats = make_splats(count=4)
    # Our quaternions are written at unit length, gsplat's as they are.
    splats["quats"] = torch.nn.functional.normalize(splats["quats"], dim=-1)
    export_splats(**splats, format="ply", save_to=str(tmp_path / "gsplat.ply"))
    splat_ssim.save_ply(tmp_path / "ours.ply", splats)
    ours, theirs = (read_ply(tmp_path / name) for name in ("ours.ply", "gsplat.ply"))
    for name, values in theirs.items():
        np.testing.assert_allclose(ours[name], values, rtol=1e-6, err_msg=name)


def test_reads_text_and_big_endian(tmp_path):
    splats = make_splats(count=3, rest=0)
    splat_ssim.save_ply(tmp_path / "a.ply", splats)
    header, body = (tmp_path / "a.ply").read_bytes().split(b"end_header\n", 1)
    table = np.frombuffer(body, "<f4")
    big = header.replace(b"little", b"big") + b"end_header\n" + table.astype(">f4").tobytes()
    rows = "\n".join(" ".join(map(repr, row.tolist())) for row in table.reshape(3, -1))
    text = header.replace(b"binary_little_endian", b"ascii") + b"end_header\n" + rows.encode()
    for name, data in (("big", big), ("text", text)):
        (tmp_path / name).write_bytes(data)
        loaded = splat_ssim.load_ply(tmp_path / name)
        torch.testing.assert_close(loaded["means"], splats["means"])
        assert loaded["shN"].shape == (3, 0, 3)


def test_errors(tmp_path):
    path = tmp_path / "a.ply"
    with pytest.raises(PlyError, match="required a PLY file, got No such file"):
        splat_ssim.load_ply(path)
    path.write_bytes(b"solid cube")
    with pytest.raises(PlyError, match="got one without its header"):
        splat_ssim.load_ply(path)
    splat_ssim.save_ply(path, make_splats())
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(PlyError, match="required 1240 bytes of vertices, got 1230"):
        splat_ssim.load_ply(path)
    splat_ssim.save_ply(path, make_splats())
    saved = path.read_bytes()
    for few in (b"4", b"0"):
        path.write_bytes(saved.replace(b"vertex 5", b"vertex " + few))
        with pytest.raises(PlyError, match=r"required \d+ bytes after its header, as that counts them, got 1240"):
            splat_ssim.load_ply(path)
        with pytest.raises(PlyError, match=r"required \d+ bytes after its header, as that counts them, got 1240"):
            ply_elements(path)
        path.write_bytes(saved + b"\n")
        assert len(splat_ssim.load_ply(path)["means"]) == len(ply_elements(path)["vertex"]["x"]) == 5
    for rows, told in (
        ("1\n2\n", "required 1 rows, as its header counts .*, got 2"),
        ("1 2\n", "1 rows of 1 numbers"),
    ):
        path.write_text(f"ply\nformat ascii 1.0\nelement vertex 1\nproperty float x\nend_header\n{rows}")
        with pytest.raises(PlyError, match=told):
            read_ply(path)
    path.write_text("ply\nformat ascii 1.0\nelement vertex 1\nproperty float x\nend_header\n1\n")
    with pytest.raises(PlyError, match="required the vertex property y"):
        splat_ssim.load_ply(path)
    splats = make_splats()
    with pytest.raises(ValueError, match=r"scales must have shape \(5, 3\), got \(4, 3\)"):
        splat_ssim.save_ply(path, {**splats, "scales": splats["scales"][:4]})
    del splats["quats"]
    with pytest.raises(ValueError, match="got none of quats"):
        splat_ssim.save_ply(path, splats)

"""Runs one job of COLMAP in a process of its own: `python worker.py JOB.json`.

What COLMAP does to its process, such as aborting, then ends this one alone. It imports nothing of splat_ssim and not
Pillow: pycolmap exports a zlib of its own, and Pillow, imported after it, crashes when it writes a PNG.

Lines on standard output: `progress N`, and at the end `result JSON`, `error SENTENCE` or `defect TRACEBACK`. COLMAP's
log goes to standard error. The worker ends when its standard input does: so it never outlives the run that started it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import pycolmap

#: Models of fewer photographs are not kept.
MIN_MODEL_SIZE = 3
#: An index of photographs has so many visual words, learnt from so many of their features, and binary codes so long.
INDEX_WORDS, INDEX_FEATURES, INDEX_DIMENSIONS = 2048, 80_000, 64
#: In a sequence, every so many photographs, the most similar ones elsewhere are compared: so many of them.
LOOP_PERIOD, LOOP_IMAGES = 5, 10
#: Quality of undistorted JPEGs.
JPEG_QUALITY = 95


class JobError(Exception):
    """An error that the user can fix. Its message is one sentence."""


def features(job: dict[str, Any]) -> dict[str, Any]:
    """Finds the features of all photographs. If an earlier call was stopped, goes on from there.

    Photographs enter the database in the order of their names, so that their numbers depend on no thread.

    Args:
        job: Its keys are database, images, masks (or null), names, camera, feature_size, features, threads, seed.

    Returns:
        cameras: for each camera, the width, the height, the focal length in pixels, whether that is from EXIF, and the
        number of its photographs.
    """
    database = Path(job["database"])
    groups = _same_cameras(job)
    if not database.exists():
        new = database.with_suffix(".new")
        for leftover in database.parent.glob(f"{new.name}*"):
            leftover.unlink()
        pycolmap.Database.open(new).close()
        for names in groups.values():
            pycolmap.import_images(new, job["images"], pycolmap.CameraMode.SINGLE, names, _reader(job))
        new.rename(database)
    options = pycolmap.FeatureExtractionOptions()
    options.num_threads, options.use_gpu = job["threads"], False
    options.max_image_size = job["feature_size"]
    options.sift.max_num_features = job["features"]
    for names in groups.values():
        pycolmap.extract_features(
            database,
            job["images"],
            image_names=names,
            camera_mode=pycolmap.CameraMode.SINGLE,
            reader_options=_reader(job),
            extraction_options=options,
            device=pycolmap.Device.cpu,
        )
    with pycolmap.Database.open(database) as opened:
        counts = {image.name: opened.num_keypoints_for_image(image.image_id) for image in opened.read_all_images()}
    missing = sorted(set(job["names"]) - set(counts))
    if missing:
        raise JobError(f"{missing[0]}: required a picture that COLMAP reads, got one it does not")
    cameras = [
        {"width": key[0], "height": key[1], "focal": key[2], "from_exif": key[3], "photos": len(names)}
        for key, names in groups.items()
    ]
    return {"cameras": cameras, "features": counts}


def _reader(job: dict[str, Any]) -> pycolmap.ImageReaderOptions:
    reader = pycolmap.ImageReaderOptions()
    reader.camera_model = job["camera"]
    if job["masks"] is not None:
        reader.mask_path = job["masks"]
    return reader


def _same_cameras(job: dict[str, Any]) -> dict[tuple[int, int, float, bool], list[str]]:
    """The names of photographs by size, focal length and whether that is from EXIF."""
    groups: dict[tuple[int, int, float, bool], list[str]] = {}
    for name in job["names"]:
        camera = pycolmap.infer_camera_from_image(Path(job["images"]) / name, _reader(job))
        key = camera.width, camera.height, round(float(camera.focal_length_x), 3), camera.has_prior_focal_length
        groups.setdefault(key, []).append(name)
    return groups


def matching(job: dict[str, Any]) -> dict[str, Any]:
    """Compares photographs. Pairs that the database already has are not compared again.

    Args:
        job: Its keys are database, kind (exhaustive, sequential or retrieval), overlap, similar, index (a file that is
            made), threads, seed.

    Returns:
        pairs: number of pairs compared. verified: number of these pairs that show the same things.
    """
    options, geometry = pycolmap.FeatureMatchingOptions(), pycolmap.TwoViewGeometryOptions()
    options.num_threads, options.use_gpu = job["threads"], False
    geometry.ransac.random_seed = job["seed"]
    common: dict[str, Any] = {"matching_options": options, "verification_options": geometry}
    common["device"] = pycolmap.Device.cpu
    if job["kind"] == "exhaustive":
        pycolmap.match_exhaustive(job["database"], **common)
    elif job["kind"] == "sequential":
        following = pycolmap.SequentialPairingOptions()
        following.overlap, following.quadratic_overlap = job["overlap"], True
        # Where a walk comes back to what it has seen, the similar frames lie farther off.
        following.loop_detection, following.loop_detection_period = True, LOOP_PERIOD
        following.loop_detection_num_images = LOOP_IMAGES
        following.loop_detection_min_index_distance = job["overlap"] + 1
        following.vocab_tree_path, following.num_threads = _index(job), job["threads"]
        pycolmap.match_sequential(job["database"], pairing_options=following, **common)
    else:
        similar = pycolmap.VocabTreePairingOptions()
        similar.num_images, similar.vocab_tree_path = job["similar"], _index(job)
        similar.num_threads = job["threads"]
        pycolmap.match_vocabtree(job["database"], pairing_options=similar, **common)
    with pycolmap.Database.open(job["database"]) as opened:
        _, inliers = opened.read_two_view_geometry_num_inliers()
        enough = sum(count >= geometry.min_num_inliers for count in inliers)
        return {"pairs": opened.num_verified_image_pairs(), "verified": enough}


def _index(job: dict[str, Any]) -> Path:
    """An index by which similar photographs are found: its visual words are learnt from the photographs themselves."""
    path = Path(job["index"])
    if path.exists():
        return path
    random, parts, kind = np.random.default_rng(job["seed"]), [], None
    with pycolmap.Database.open(job["database"]) as database:
        images = sorted(database.read_all_images(), key=lambda image: image.image_id)
        for image in images:
            descriptors = database.read_descriptors(image.image_id)
            kind = descriptors.type
            data = np.asarray(descriptors.data)
            parts.append(data[random.permutation(len(data))[: max(100, INDEX_FEATURES // len(images))]])
    features = np.concatenate(parts).astype(np.float32)
    if len(features) < 100:
        raise JobError(f"required at least 100 features in all photographs, got {len(features)}")
    build = pycolmap.VisualIndex.BuildOptions()
    build.num_visual_words = max(16, min(INDEX_WORDS, len(features) // 40))
    build.num_iterations, build.num_rounds, build.num_threads = 5, 1, job["threads"]
    pycolmap.set_random_seed(job["seed"])
    index = pycolmap.VisualIndex.create(features.shape[1], INDEX_DIMENSIONS)
    index.build(build, pycolmap.FeatureDescriptorsFloat(type=kind, data=features))
    new = path.with_suffix(".new")
    index.write(new)
    new.rename(path)
    return path


def mapping(job: dict[str, Any]) -> dict[str, Any]:
    """Reconstructs poses and points. Groups of photographs that do not connect become models of their own.

    A first try has COLMAP's own limits. Photographs taken while moving forward see points at angles that are too small
    for these; a second try accepts them, if the first places less than three quarters of the photographs.

    Args:
        job: Its keys are database, images, output (a folder that is made), photos (their number), threads, seed.

    Returns:
        models: for each model, the largest first, its folder and the numbers of its photographs and points. relaxed:
        whether the result of the second try is kept.
    """
    output = Path(job["output"])
    best = _reconstructed(job, output / "strict", relaxed=False)
    relaxed = False
    if not best or 4 * best[0]["photos"] < 3 * job["photos"]:
        other = _reconstructed(job, output / "relaxed", relaxed=True)
        relaxed = bool(other) and (not best or other[0]["photos"] > best[0]["photos"])
        best = other if relaxed else best
    return {"models": best, "relaxed": relaxed}


def _reconstructed(job: dict[str, Any], output: Path, *, relaxed: bool) -> list[dict[str, Any]]:
    output.mkdir(parents=True)
    pycolmap.set_random_seed(job["seed"])
    options = pycolmap.IncrementalPipelineOptions()
    options.num_threads, options.random_seed = job["threads"], job["seed"]
    options.mapper.random_seed = options.triangulation.random_seed = job["seed"]
    options.min_model_size = MIN_MODEL_SIZE
    if relaxed:
        options.mapper.init_max_forward_motion = 1.0
        options.mapper.init_min_tri_angle = 4.0
        options.mapper.abs_pose_min_num_inliers = 15
        options.mapper.filter_min_tri_angle = options.triangulation.min_angle = 0.5
    count = 0

    def one_more() -> None:
        nonlocal count
        count += 1
        print(f"progress {count}", flush=True)

    pycolmap.incremental_mapping(
        job["database"],
        job["images"],
        output,
        options,
        initial_image_pair_callback=one_more,
        next_image_callback=one_more,
    )
    models = []
    for folder in sorted(path for path in output.iterdir() if path.is_dir()):
        model = pycolmap.Reconstruction(folder)
        photos, points = model.num_reg_images(), model.num_points3D()
        place = folder.relative_to(job["output"]).as_posix()
        models.append({"folder": place, "photos": photos, "points": points})
    return sorted(models, key=lambda model: (-model["photos"], -model["points"], model["folder"]))


def undistortion(job: dict[str, Any]) -> dict[str, Any]:
    """Writes the photographs, masks and alpha channels of a model as a pinhole camera would see them.

    Args:
        job: Its keys are model, images, masks, alphas (folders, the last two may be missing), output (a folder that is
            made: images, masks, alphas, sparse/0), threads.

    Returns:
        The model's part of the report: registered, points, reprojection_error (pixels), track_length, cameras.
    """
    output = Path(job["output"])
    model = pycolmap.Reconstruction(job["model"])
    pycolmap.undistort_images(
        output, job["model"], job["images"], jpeg_quality=JPEG_QUALITY, num_threads=job["threads"]
    )
    flat = pycolmap.Reconstruction(output / "sparse")
    (output / "sparse").rename(output / "moved")
    (output / "moved").joinpath("0").mkdir()
    for file in [path for path in (output / "moved").iterdir() if path.is_file()]:
        file.rename(output / "moved" / "0" / file.name)
    (output / "moved").rename(output / "sparse")
    images = [model.images[number] for number in sorted(model.reg_image_ids())]
    smooth, nearest = pycolmap.UndistortCameraOptions(), pycolmap.UndistortCameraOptions()
    nearest.warp_options.interpolation = type(nearest.warp_options.interpolation).NEAREST_NEIGHBOR
    for image in images:
        camera = model.cameras[image.camera_id]
        for kind, options in (("masks", nearest), ("alphas", smooth)):
            _warp(Path(job[kind]) / f"{image.name}.png", output / kind / f"{image.name}.png", camera, options)
        if not (output / "images" / image.name).is_file():
            raise JobError(f"{image.name}: required room and permission to write it undistorted, got no file")
    return {
        "registered": sorted(image.name for image in images),
        "points": model.num_points3D(),
        "reprojection_error": float(model.compute_mean_reprojection_error()),
        "track_length": float(model.compute_mean_track_length()),
        "cameras": [_told(model.cameras[number], flat.cameras[number]) for number in sorted(model.cameras)],
    }


def _told(camera: Any, flat: Any) -> dict[str, Any]:
    return {
        "model": camera.model_name,
        "width": camera.width,
        "height": camera.height,
        "focal": [float(camera.focal_length_x), float(camera.focal_length_y)],
        "params": np.asarray(camera.params).tolist(),
        "undistorted": [flat.width, flat.height],
    }


def _warp(source: Path, target: Path, camera: Any, options: Any) -> None:
    """Undistorts one grey picture, if there is one."""
    if not source.is_file():
        return
    bitmap = pycolmap.Bitmap.read(source, False)
    if bitmap is None:
        raise JobError(f"{source}: required the picture that was written there, got one that does not read")
    warped, _ = pycolmap.undistort_image(options, bitmap, camera)
    target.parent.mkdir(parents=True, exist_ok=True)
    if not warped.write(target):
        raise JobError(f"{target}: required room and permission to write it, got none")


JOBS = {"features": features, "matching": matching, "mapping": mapping, "undistortion": undistortion}


def _end_with_parent() -> None:
    # sys.stdin has a lock, over which Python would stumble at its end.
    while os.read(0, 1):
        pass
    os._exit(1)


def main() -> None:
    """Runs the job in the file of the command line."""
    # Ctrl-C reaches every process of the terminal; the parent decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    pycolmap.logging.logtostderr = True
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    try:
        print("result", json.dumps(JOBS[job["job"]](job)), flush=True)
    except JobError as error:
        print("error", " ".join(str(error).split()), flush=True)
    except (ValueError, RuntimeError, OSError):
        # What COLMAP says of bad input. The parent shows the last line.
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    except Exception:
        print("defect", json.dumps(traceback.format_exc()), flush=True)
    # Whatever threads COLMAP left behind are not waited for.
    os._exit(0)


if __name__ == "__main__":
    main()

"""Names of volume files: their formats, and whether a volume can be written to a path."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .._files import check_output
from .formats import WRITERS, sidecar
from .ome_zarr import foreign, split_zarr

#: How each format is recognised, longest suffix first.
SUFFIXES = {
    ".nii.gz": "nifti",
    ".nii": "nifti",
    ".hdr": "nifti",
    ".img": "nifti",
    ".npy": "npy",
    ".npz": "npz",
    ".raw": "raw",
    ".tiff": "tiff",
    ".tif": "tiff",
    ".nrrd": "nrrd",
    ".nhdr": "nrrd",
    ".mha": "metaimage",
    ".mhd": "metaimage",
    ".dcm": "dicom",
    ".ima": "dicom",
    ".h5": "hdf5",
    ".hdf5": "hdf5",
    ".mrc": "mrc",
    ".mrc.gz": "mrc",
    ".map": "mrc",
    ".map.gz": "mrc",
    ".rec": "mrc",
    ".zarr": "zarr",
}

#: Formats that are not read -> what turns them into one that is.
CONVERTERS = {
    **dict.fromkeys(
        (".czi", ".nd2", ".lif", ".oib", ".oif", ".oir", ".vsi", ".ims", ".lsm"), "bioformats2raw (OME-Zarr)"
    ),
    **dict.fromkeys((".mgz", ".mgh"), "FreeSurfer's mri_convert (NIfTI)"),
    ".mnc": "mnc2nii (NIfTI)",
    ".par": "dcm2niix (NIfTI)",
    **dict.fromkeys((".dm3", ".dm4"), "IMOD's dm2mrc (MRC)"),
    **dict.fromkeys((".vtk", ".vti", ".am", ".gipl"), "3D Slicer (NRRD)"),
    ".vdb": "OpenVDB's Python module (npy)",
    ".n5": "bioformats2raw or zarr's N5 reader (OME-Zarr)",
    ".b2nd": "blosc2 (npy)",
    **dict.fromkeys((".png", ".jpg", ".jpeg", ".bmp", ".jp2"), "Fiji (a TIFF stack)"),
    **dict.fromkeys((".mp4", ".avi", ".mov"), "ffmpeg (TIFF slices)"),
    **dict.fromkeys((".zip", ".tar", ".7z"), "unpacking"),
}

#: Suffixes of volumes in two files, which are read only -> those of the same format in one file.
ONE_FILE = {".hdr": ".nii or .nii.gz", ".img": ".nii or .nii.gz", ".nhdr": ".nrrd", ".mhd": ".mha"}


def kind_of_suffix(path: Path) -> str | None:
    """The format that a name's suffix stands for, None if it is none of `SUFFIXES`."""
    return next((kind for suffix, kind in SUFFIXES.items() if path.name.lower().endswith(suffix)), None)


def files_of(path: Path) -> list[Path]:
    """A volume's file or folder, and the JSON file beside it where its format has one."""
    return [path, sidecar(path)] if path.suffix.lower() in (".npy", ".raw") else [path]


def check_written(path: Path, *, inputs: Sequence[Path] = ()) -> str:
    """Checks, before anything is computed, that a volume could be written. Returns its format.

    Args:
        path: File to write, or folder to write if it ends in .zarr. What is there says nothing about the format.
        inputs: Files and folders that are read, which the volume must neither replace nor lie in.

    Raises:
        ValueError: An unknown suffix, or a format that is read only (DICOM).
        WriteError: There is something at the path that is not replaced, it is an input, or the system refuses to write.
    """
    kind = kind_of_suffix(path)
    if kind is None:
        known = ", ".join(suffix for suffix, kind in SUFFIXES.items() if kind in WRITERS and suffix not in ONE_FILE)
        raise ValueError(f"a volume file must end in one of {known}, got {path.name!r}")
    if kind not in WRITERS:
        raise ValueError(f"{kind} volumes are read only: save as .nii.gz, .nrrd or .mha, got {path.name!r}")
    for pair, single in ONE_FILE.items():
        if path.name.lower().endswith(pair):
            raise ValueError(f"a {kind} volume must be written as {single}, got {path.name!r}")
    if split_zarr(path.parent)[0].suffix.lower() == ".zarr":
        raise ValueError(f"a volume must be written outside of zarr folders, got {path}")
    for file in files_of(path):
        read = [each for volume in inputs for each in files_of(volume)]
        check_output(file, inputs=read, outside=True, store=foreign if kind == "zarr" else None)
    return kind

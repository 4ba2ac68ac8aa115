"""The CUDA part of the library: kernels compiled by nvcc where there is one, their source embedded in any case.

`$SPLAT_SSIM_CUDA`: "auto" (the default) compiles with nvcc where it is found; "1" demands it; "0" leaves it out, and
the source is compiled at first use by NVRTC, which comes with PyTorch for CUDA. `$TORCH_CUDA_ARCH_LIST` names
architectures as PyTorch does ("8.0;9.0+PTX"); without it all of ARCHITECTURES that the nvcc knows are built, and PTX of
the newest. No GPU is looked for. Standard library only.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent / "cuda"
#: The architectures in a wheel, from Turing to Blackwell.
ARCHITECTURES = ("75", "80", "86", "89", "90", "100", "120")
HOST_SOURCES = (
    "launch.cpp",
    "launch_voxelize.cpp",
    "launch_xray.cpp",
    "launch_driver.cpp",
    "replay.cpp",
    "embedded.cpp",
)


def supported() -> bool:
    """Whether this platform gets the CUDA part at all."""
    return sys.platform.startswith("linux")


def nvcc() -> str | None:
    """The CUDA compiler: of $CUDA_HOME, on the path, or in the usual place."""
    homes = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    candidates = [f"{home}/bin/nvcc" for home in homes] + ["nvcc", "/usr/local/cuda/bin/nvcc"]
    return next((found for found in map(shutil.which, candidates) if found), None)


def wanted() -> str | None:
    """Returns the path of the nvcc to use, or None.

    Raises:
        ValueError: $SPLAT_SSIM_CUDA is not auto, 0 or 1.
        RuntimeError: $SPLAT_SSIM_CUDA is 1 and there is no nvcc.
    """
    choice = os.environ.get("SPLAT_SSIM_CUDA", "auto")
    if choice not in ("auto", "0", "1"):
        raise ValueError(f"SPLAT_SSIM_CUDA must be auto, 0 or 1, got {choice!r}")
    found = None if choice == "0" else nvcc()
    if choice == "1" and found is None:
        raise RuntimeError("SPLAT_SSIM_CUDA=1 needs nvcc, and none was found: set CUDA_HOME")
    return found


def architecture_flags(compiler: str) -> list[str]:
    """Returns nvcc's options for the architectures to build.

    Raises:
        ValueError: $TORCH_CUDA_ARCH_LIST cannot be parsed.
    """
    named = os.environ.get("TORCH_CUDA_ARCH_LIST", "").replace(";", " ").split()
    if named:
        chosen, with_ptx = [], []
        for name in named:
            match = re.fullmatch(r"(\d+)\.(\d+)([af]?)(\+PTX)?", name)
            if not match:
                raise ValueError(f"TORCH_CUDA_ARCH_LIST must list versions such as 8.0 or 9.0+PTX, got {name!r}")
            architecture = match[1] + match[2] + match[3]
            chosen.append(architecture)
            if match[4]:
                with_ptx.append(architecture)
    else:
        listed = subprocess.run([compiler, "--list-gpu-arch"], capture_output=True, text=True, check=True).stdout
        known = set(re.findall(r"compute_(\d+)", listed))
        chosen = [architecture for architecture in ARCHITECTURES if architecture in known]
        with_ptx = chosen[-1:]
    flags = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in chosen]
    return flags + [f"-gencode=arch=compute_{a},code=compute_{a}" for a in with_ptx]


def amalgamate(source: Path = FOLDER / "kernels.cu", seen: set[Path] | None = None) -> str:
    """The kernels as one text, every file of csrc and csrc/cuda they include in its place: what NVRTC compiles."""
    seen = set() if seen is None else seen
    lines = []
    for line in source.read_text(encoding="utf-8").splitlines():
        included = re.fullmatch(r'#include "((?:\.\./)?[^"/]+)"', line)
        if included:
            path = (source.parent / included[1]).resolve()
            if path not in seen:
                seen.add(path)
                lines.append(amalgamate(path, seen))
        elif line != "#pragma once":
            lines.append(line)
    return "\n".join(lines) + "\n"


def kernel_image(folder: Path) -> Path:
    """Compiles the kernels where that is wanted and something changed. Returns the image, empty without nvcc."""
    image, stamp = folder / "kernels.fatbin", folder / "kernels.stamp"
    compiler = wanted()
    if compiler is None:
        command: list[str] = []
    else:
        command = [compiler, "-fatbin", "-std=c++17", "-O3", "--threads=0", "-allow-unsupported-compiler"]
        command += [*architecture_flags(compiler), str(FOLDER / "kernels.cu"), "-o", str(image)]
    state = repr(command) + amalgamate()
    if image.exists() and stamp.exists() and stamp.read_text() == state:
        return image
    if command:
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)}\nfailed with exit status {done.returncode}\n{done.stderr}")
    else:
        image.write_bytes(b"")
    stamp.write_text(state)
    return image


def host_units(folder: Path) -> list[tuple[Path, list[str]]]:
    """Compiles the kernels and returns the units for the C++ compiler: (source, extra flags)."""
    if not supported():
        return []
    folder.mkdir(parents=True, exist_ok=True)
    image, text = kernel_image(folder), folder / "kernels_in_one.cu"
    if not text.exists() or text.read_text(encoding="utf-8") != amalgamate():
        text.write_text(amalgamate(), encoding="utf-8")
    compiler = wanted()
    codes = [] if compiler is None else [flag.rpartition("code=")[2] for flag in architecture_flags(compiler)]
    embedding = [f'-DSPLAT_IMAGE_PATH="{image}"', f'-DSPLAT_SOURCE_PATH="{text}"']
    embedding.append(f'-DSPLAT_ARCHITECTURES="{",".join(codes)}"')
    return [(FOLDER / name, embedding if name == "embedded.cpp" else []) for name in HOST_SOURCES]


def inputs(folder: Path) -> list[Path]:
    """Headers and embedded files: newer ones make the host objects out of date."""
    embedded = [folder / "kernels.fatbin", folder / "kernels_in_one.cu"]
    return [path for path in [*embedded, *FOLDER.glob("*.h"), *FOLDER.parent.glob("*.h")] if path.exists()]

"""Holds the CUDA kernels to their bars on a machine without a GPU, and writes benchmarks/cuda_static.csv.

    python scripts/cuda_counts.py                             # needs nvcc, cuobjdump and nvdisasm
    pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm    # the last two, where only nvcc is installed

The bars hold for nvcc 13.0: another one may schedule otherwise.

Two counts that check each other. The compiled one: registers, stack, spills and shared memory as ptxas reports them,
and the machine instructions of the marching loop's body as cuobjdump shows them. The emulated one: the host emulation
runs the same kernels and counts floating-point operations, global bytes and shared-memory wavefronts. Where both count
the same thing, floating-point instructions an output, they must agree within 2%. Static counts: nothing here was
measured on a GPU.
"""

from __future__ import annotations

import argparse
import csv
import ctypes
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "csrc")]

import build_cuda  # noqa: E402
import build_emulation  # noqa: E402

from splat_ssim.ops import _cuda_launch as launch  # noqa: E402
from splat_ssim.ops.ssim import Options  # noqa: E402

ARCHITECTURES = ("sm_89", "sm_90")
FLOAT = ("FFMA", "FADD", "FMUL")


@dataclass(frozen=True)
class Bar:
    """The most a kernel may take. Instructions are of one pass of the marching loop, which makes two outputs."""

    registers: int
    shared_bytes: int
    instructions: tuple[int, ...]  # of its steady loops, in the order of the code
    wavefronts: float  # for 32 outputs
    read_bytes: float  # an output; the counted image is one strip wide, a volume two tiles high
    written_bytes: float


# Aims: 280, 350, 275 and 260 + 300 in 2D, 605 and 490 in 3D. value2d and value3d
# also sum |x - y|. weighted3d alone is above: it multiplies by an upstream map, two loads, their addresses and two
# multiplications more than partials3d.
BARS = {
    "splat_value2d": Bar(128, 4_400, (280,), 15.0, 8.1, 0.1),
    "splat_weighted2d": Bar(128, 4_400, (345,), 15.0, 12.1, 12.1),
    "splat_backward2d": Bar(128, 6_500, (275,), 23.0, 20.1, 4.1),
    "splat_fused2d": Bar(128, 34_100, (260, 300), 41.0, 8.1, 4.1),
    "splat_value3d": Bar(128, 23_000, (560,), 50.0, 10.6, 0.1),
    "splat_partials3d": Bar(128, 23_000, (605,), 50.0, 10.6, 12.1),
    "splat_weighted3d": Bar(128, 23_000, (615,), 50.0, 14.6, 12.1),
    "splat_backward3d": Bar(128, 25_100, (490,), 56.0, 23.9, 4.1),
}


def compile_kernels(architecture: str, folder: Path) -> tuple[Path, dict[str, dict[str, int]]]:
    """Returns the cubin and what ptxas reports of each kernel."""
    nvcc = build_cuda.nvcc()
    if nvcc is None:
        raise SystemExit("nvcc was not found: set CUDA_HOME")
    cubin = folder / f"{architecture}.cubin"
    command = [
        nvcc,
        "-cubin",
        "-std=c++17",
        "-O3",
        "-allow-unsupported-compiler",
        f"-arch={architecture}",
        "-Xptxas=-v",
    ]
    done = subprocess.run([*command, build_cuda.FOLDER / "kernels.cu", "-o", cubin], capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(done.stderr)
    patterns = {
        "stack": r"(\d+) bytes stack frame",
        "spills": r"(\d+) bytes spill stores",
        "registers": r"Used (\d+) registers",
        "shared": r"(\d+) bytes smem",
    }
    report = {}
    for entry in done.stderr.split("Compiling entry function")[1:]:
        name = re.search(r"'(\w+)'", entry)
        found = {key: re.search(pattern, entry) for key, pattern in patterns.items()}
        report[name[1]] = {key: int(match[1]) if match else 0 for key, match in found.items()}
    return cubin, report


def binary_tools() -> Path | None:
    """The folder of cuobjdump and nvdisasm: on the path, or of NVIDIA's wheels."""
    folders = [Path(found).parent for found in [shutil.which("cuobjdump")] if found]
    folders += [folder for entry in sys.path for folder in Path(entry).glob("nvidia/*/bin")]
    names = ("cuobjdump", "nvdisasm")
    return next((folder for folder in folders if all((folder / name).exists() for name in names)), None)


@dataclass(frozen=True)
class Loop:
    """The body of a marching loop: how many machine instructions, and of which kinds."""

    total: int
    floating: int
    local: int


def steady_loops(cubin: Path) -> dict[str, list[Loop]]:
    """For each kernel the loops of at least 180 instructions that hold no other such loop, in the order of the code.

    A march has two: filling the filter, then making outputs. The last one of a kernel that marches once is steady; the
    fused kernel has one loop for each role, without a separate warm-up.
    """
    found = binary_tools()
    if found is None:
        raise SystemExit("pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm: they were not found")
    environment = {**os.environ, "PATH": f"{found}{os.pathsep}{os.environ.get('PATH', '')}"}
    command = [found / "cuobjdump", "-sass", cubin]
    text = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    loops: dict[str, list[Loop]] = {}
    for function in text.split("Function : ")[1:]:
        name = function.split()[0]
        pattern = r"/\*([0-9a-f]{4,6})\*/\s+(?:@!?U?PT?\d*\s+)?([A-Z][A-Z0-9_.]*)\s*([^;]*);"
        code = [(int(at, 16), op, rest) for at, op, rest in re.findall(pattern, function)]
        spans = []
        for at, op, rest in code:
            target = re.search(r"0x([0-9a-f]+)", rest) if op.startswith("BRA") else None
            if target and at - int(target[1], 16) >= 180 * 16:
                spans.append((int(target[1], 16), at))
        # The shortest ones that do not overlap: longer spans only come from code that was moved out of a loop.
        inner: list[tuple[int, int]] = []
        for start, end in sorted(spans, key=lambda span: span[1] - span[0]):
            if all(end < first or start > last for first, last in inner):
                inner.append((start, end))
        bodies = [[op for at, op, _ in code if start <= at <= end] for start, end in sorted(inner)]
        loops[name] = [
            Loop(
                len(body),
                sum(op.split(".")[0] in FLOAT for op in body),
                sum(op.startswith(("LDL", "STL")) for op in body),
            )
            for body in bodies
        ]
    return loops


@dataclass(frozen=True)
class Emulated:
    """Counts of the emulation for an output of the kernel."""

    floating: float
    read_bytes: float
    written_bytes: float
    wavefronts: float  # for 32 outputs
    ideal_wavefronts: float


def emulate(kernel: str, library: ctypes.CDLL) -> tuple[Emulated, float]:
    """Runs a kernel on an image that fills its blocks, in one segment. Returns the counts, and its number of steps."""
    volume, fused = kernel.endswith("3d"), "fused" in kernel
    width = 246 if fused else 256
    shape = (1, 1, 48, 32, 32) if volume else (1, 1, 192, width)
    img1, img2 = torch.rand(shape), torch.rand(shape)
    options = Options(spatial_dims=3 if volume else 2)
    call = launch._Call(launch.Kernels(library, None, 1), 0, img1, img2, options, (torch.empty(shape), None))
    problem = call.problem(1.0)
    problem.l1_scale = 1.0
    partials = call.empty(3, img1.numel()).zero_()
    operation = launch._FUSED if fused else launch._BACKWARD if "backward" in kernel else launch._FORWARD
    if operation != launch._FORWARD:
        problem.grad[0] = launch._describe(call.grads[0], options)
    if "partials" in kernel or "weighted" in kernel or "backward" in kernel:
        problem.partials = partials.data_ptr()
    if "weighted" in kernel:
        weight = torch.rand(shape)
        problem.weight = launch._describe(launch._volume(weight, options), options)
    counts = (ctypes.c_double * 8)()
    library.splat_emulation_take_counts(counts)
    name, blocks = call.kernels.prepare(problem, call._requested(False), operation)
    sums = call.empty(3, blocks)
    problem.block_sums = sums.data_ptr()
    problem.segment, problem.segments = shape[2], 1
    call.kernels.launch("ssim", problem, 0)
    library.splat_emulation_take_counts(counts)
    if name != kernel:
        raise SystemExit(f"{name} ran in the place of {kernel}")
    fused_ops, added, multiplied, _, read, written, words, wavefronts = (count / img1.numel() for count in counts)
    # Every step moves as much shared memory; a long segment's share of warm-up is next to nothing.
    steps = 1 + (21 if fused else 10) / shape[2]
    emulated = Emulated(fused_ops + added + multiplied, read, written, 32 * wavefronts / steps, words / steps)
    return emulated, shape[2]


def floating_an_output(kernel: str, loops: list[Loop], length: int) -> float:
    """Floating-point instructions of working threads for an output, of one segment of `length`, from the loops' bodies.

    A march fills its filter for 10 steps in the loop before the steady one. The fused kernel's role that filters
    backward does so for 10 steps, the other one works for 21, and 256 columns are walked for 246 outputs. In volumes
    the rows of 26 x 8 groups keep 208 of 256 threads: the body counts 204 instructions (132 backward) for all.
    """
    if "fused" in kernel:
        backward, forward = (loop.floating for loop in loops)
        return (backward * (1 + 10 / length) + forward * (1 + 21 / length)) / 2 * 256 / 246
    idle = 0.0
    if kernel.endswith("3d"):
        idle = (1 - 208 / 256) * (132 if "backward" in kernel else 204) * (1 + 10 / length)
    return (loops[-1].floating + loops[-2].floating * 10 / length - idle) / 2


def check(architecture: str, folder: Path, library: ctypes.CDLL) -> tuple[list[dict[str, object]], list[str]]:
    """One row for each kernel, and what is above its bar."""
    cubin, report = compile_kernels(architecture, folder)
    loops, rows, faults = steady_loops(cubin), [], []
    for kernel, found in sorted(report.items()):
        row: dict[str, object] = {"architecture": architecture, "kernel": kernel, **found}
        bar = BARS.get(kernel)
        if found["stack"] or found["spills"]:
            faults.append(f"{architecture} {kernel}: {found['stack']} bytes of stack, {found['spills']} of spills")
        if bar is not None:
            marches = loops[kernel] if "fused" in kernel else loops[kernel][-1:]
            emulated, length = emulate(kernel, library)
            compiled = floating_an_output(kernel, loops[kernel], length)
            row |= {
                "instructions": "+".join(str(loop.total) for loop in marches),
                "float_instructions_an_output": f"{compiled:.1f}",
                "emulated_float_an_output": f"{emulated.floating:.1f}",
                "emulated_wavefronts_per_32": f"{emulated.wavefronts:.1f}",
                "emulated_words_an_output": f"{emulated.ideal_wavefronts:.1f}",
                "emulated_bytes_read": f"{emulated.read_bytes:.2f}",
                "emulated_bytes_written": f"{emulated.written_bytes:.2f}",
            }
            limits = {
                "registers": (found["registers"], bar.registers),
                "bytes of shared memory": (found["shared"], bar.shared_bytes),
                "local accesses in the loop": (sum(loop.local for loop in marches), 0),
                "wavefronts": (emulated.wavefronts, bar.wavefronts),
                "wavefronts beside the words": (emulated.wavefronts, 1.25 * emulated.ideal_wavefronts),
                "bytes read": (emulated.read_bytes, bar.read_bytes),
                "bytes written": (emulated.written_bytes, bar.written_bytes),
                "difference of the counts in %": (100 * abs(compiled / emulated.floating - 1), 2.0),
            }
            if len(marches) != len(bar.instructions):
                faults.append(f"{architecture} {kernel}: {len(marches)} loops, {len(bar.instructions)} expected")
            for loop, most in zip(marches, bar.instructions, strict=False):
                limits[f"instructions of the loop of {most}"] = (loop.total, most)
            faults += [
                f"{architecture} {kernel}: {value:.1f} {what}, at most {most:.1f}"
                for what, (value, most) in limits.items()
                if value > most
            ]
        rows.append(row)
    return rows, faults


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csv", type=Path, default=ROOT / "benchmarks" / "cuda_static.csv")
    arguments = parser.parse_args()
    library = ctypes.CDLL(str(build_emulation.build("count")))
    rows, faults = [], []
    with tempfile.TemporaryDirectory() as folder:
        for architecture in ARCHITECTURES:
            more_rows, more_faults = check(architecture, Path(folder), library)
            rows += more_rows
            faults += more_faults
    columns = list(max(rows, key=len))
    arguments.csv.parent.mkdir(parents=True, exist_ok=True)
    with arguments.csv.open("w", newline="") as file:
        file.write("# Static counts by scripts/cuda_counts.py, not measured on a GPU. Instructions: one pass of the\n")
        file.write(
            "# marching loop's body for two outputs (fused: of each role). Bytes include halos of a small image.\n"
        )
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    for row in rows:
        print(*(f"{row.get(column, '')}" for column in columns), sep="\t")
    if faults:
        raise SystemExit("\n".join(faults))


if __name__ == "__main__":
    main()

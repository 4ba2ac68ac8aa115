"""Checks the CUDA kernels against their limits without a GPU, and writes benchmarks/results/cuda_static.csv.

    python scripts/cuda_counts.py                             # needs nvcc, cuobjdump and nvdisasm
    pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm    # the last two, where only nvcc is installed

The limits are for nvcc 13.0; another version may schedule instructions differently.

Two counts check each other. The first reads the compiled kernels: registers, stack, spills and shared memory from
ptxas, and the machine instructions of the whole kernel and of the marching loop's body from cuobjdump. The second runs
the same kernels in the host emulation (_cuda_emulated.py), which counts floating-point operations, global bytes and
shared-memory wavefronts. Both count the floating-point instructions for an output of the plain marching kernels. These
must agree within 2%, or within 2 instructions. These are static counts: nothing was measured on a GPU.
"""

from __future__ import annotations

import argparse
import csv
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "csrc"), str(ROOT / "scripts")]

import _cuda_emulated  # noqa: E402

import build_cuda  # noqa: E402

ARCHITECTURES = ("sm_89", "sm_90")
FLOAT = ("FFMA", "FADD", "FMUL")
DOUBLE = ("DFMA", "DADD", "DMUL")


@dataclass(frozen=True)
class Bar:
    """Upper limits for a kernel. Bytes and wavefronts are for an output of the run in _cuda_emulated.py."""

    registers: int
    shared_bytes: int
    read_bytes: float  # the counted image is one strip wide, a volume two tiles high
    written_bytes: float
    wavefronts: float = 0.0  # for 32 outputs
    # Instructions of one pass of each steady loop, which makes two outputs, in the order of the code. Only for plain
    # marching kernels: the loops of others also contain branches for types and layouts that a call does not take.
    instructions: tuple[int, ...] = ()


# The aims are 280 and 260 + 300 instructions in 2D, 605 and 490 in 3D. The fused kernels with weights have no aim.
# Three kernels are above theirs: value2d, which also sums |x - y|; value2d and partials3d, by the subtractions of d's
# shift; and weighted3d, which multiplies by an upstream map and so has two loads, their addresses and two
# multiplications more than partials3d.
BARS = {
    "splat_value2d": Bar(128, 4_400, 8.1, 0.1, 15.0, (287,)),
    "splat_fused2d": Bar(128, 34_100, 8.1, 4.1, 41.0, (260, 300)),
    # Its columns of the adjoint maps begin at an odd place, so it stores and loads narrower vectors.
    "splat_fused2d_lone": Bar(128, 34_300, 8.1, 4.1, 45.0, (270, 305)),
    # Several instructions of the second loop are moves, because the last block computes the means and the barrier
    # between the roles is the form that does not require a converged warp.
    "splat_fused2d_weighted": Bar(128, 34_100, 16.1, 4.1, 41.0, (280, 325)),
    "splat_value3d": Bar(128, 23_000, 10.6, 0.1, 50.0, (565,)),
    "splat_partials3d": Bar(128, 23_000, 10.6, 12.1, 50.0, (610,)),
    "splat_weighted3d": Bar(128, 23_000, 14.6, 12.1, 50.0, (622,)),
    "splat_backward3d": Bar(128, 25_100, 23.9, 4.1, 56.0, (490,)),
    # Every type and layout, both gradients: as much shared memory and bytes, up to 168 registers in 2D (3 blocks an
    # SM), 255 in 3D (1 block).
    "splat_forward2d": Bar(168, 4_400, 12.1, 16.1, 15.0),
    "splat_adjoint2d": Bar(168, 8_600, 24.1, 8.1, 30.0),
    # Reads two bytes of the target for each element: the colour and the alpha.
    "splat_fused2d_rgba": Bar(128, 34_100, 6.3, 4.1, 41.0),
    "splat_fused2d_strided": Bar(128, 34_100, 8.1, 4.1, 41.0),
    "splat_fused2d_weighted_strided": Bar(128, 34_100, 16.1, 4.1, 41.0),
    "splat_forward3d": Bar(255, 23_000, 14.6, 16.1, 50.0),
    "splat_adjoint3d": Bar(255, 33_400, 29.1, 8.1, 75.0),
    "splat_pad": Bar(64, 0, 4.1, 4.1),
    # Reads two images for the sign of the L1 term and the padded gradient; voxels at the border gather several places.
    "splat_fold": Bar(64, 0, 12.6, 4.1),
    "splat_l1": Bar(64, 32, 8.1, 0.1, 0.1),
    "splat_reduce": Bar(64, 64, 4.1, 0.1, 0.1),
    "splat_scale": Bar(64, 0, 4.1, 4.1),
    # A thread a Gaussian, then for each pair of it and a brick: 4 for the place, 24 of its box, 8 for a pair written.
    "splat_voxel_prepare": Bar(128, 0, 100.0, 80.0),
    "splat_voxel_pairs": Bar(64, 0, 32.0, 45.0),
    "splat_voxel_chain": Bar(128, 0, 72.0, 40.0),
    # The figures of this run: they depend on how many voxels its Gaussians touch.
    "splat_voxel_render": Bar(64, 8_200, 8.6, 4.1, 170.0),
    "splat_voxel_render_many": Bar(64, 8_200, 9.5, 16.1, 170.0),
    "splat_voxel_gather": Bar(64, 0, 3_700.0, 40.0),
    "splat_voxel_gather_many": Bar(80, 0, 7_800.0, 52.0),
    # A thread a shadow: it reads 40 bytes of a Gaussian, writes 88 of the shadow and 8 of its count. The chain reads 4
    # views' sums, and the sums of earlier calls.
    "splat_xray_prepare": Bar(128, 0, 40.1, 96.1),
    "splat_xray_pairs": Bar(64, 0, 24.1, 12.5),
    "splat_xray_chain": Bar(184, 0, 380.0, 40.1),
    # The figures of this run, like those of the voxeliser.
    "splat_xray_render": Bar(64, 6_400, 78.0, 4.1, 1_170.0),
    "splat_xray_render_many": Bar(64, 6_400, 99.0, 16.1, 1_420.0),
    "splat_xray_gather": Bar(80, 0, 3_200.0, 56.1),
    "splat_xray_gather_many": Bar(96, 0, 4_250.0, 80.1),
}
# A narrower window has the limits of the corresponding kernel of 11 taps, instructions included.
for taps in (3, 5, 7, 9):
    for kernel in (
        "value2d",
        "forward2d",
        "adjoint2d",
        "fused2d",
        "fused2d_strided",
        "backward3d",
        "forward3d",
        "adjoint3d",
    ):
        BARS[f"splat_{kernel}_{taps}"] = BARS[f"splat_{kernel}"]
    BARS[f"splat_plain3d_{taps}"] = BARS["splat_partials3d"]
BARS["splat_fused2d_9"] = Bar(128, 34_100, 8.1, 4.1, 41.0, (260, 305))
# With windows of 13 and 15 taps, a thread makes one output.
for taps in (13, 15):
    BARS[f"splat_forward2d_{taps}"] = Bar(168, 2_400, 12.6, 16.1, 33.0)
    BARS[f"splat_adjoint2d_{taps}"] = Bar(168, 4_600, 25.0, 8.1, 67.0)
    BARS[f"splat_forward3d_{taps}"] = Bar(255, 19_800, 22.7, 16.1, 110.0)
    BARS[f"splat_adjoint3d_{taps}"] = Bar(255, 31_100, 45.2, 8.1, 165.0)
# Windows that differ between axes have the limits of the widest windows.
for taps, like in ((11, ""), (15, "_15")):
    for kernel in ("forward3d", "adjoint3d"):
        BARS[f"splat_{kernel}_axes_{taps}"] = BARS[f"splat_{kernel}{like}"]


def compile_kernels(architecture: str, folder: Path) -> tuple[Path, dict[str, dict[str, int]]]:
    """Returns the path of the cubin, and the figures that ptxas reports for each kernel."""
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
        name = entry.split("'")[1]
        found = {key: re.search(pattern, entry) for key, pattern in patterns.items()}
        report[name] = {key: int(match[1]) if match else 0 for key, match in found.items()}
    return cubin, report


def binary_tools() -> Path | None:
    """The folder of cuobjdump and nvdisasm, found on the path or in NVIDIA's wheels."""
    folders = [Path(found).parent for found in [shutil.which("cuobjdump")] if found]
    folders += [folder for entry in sys.path for folder in Path(entry).glob("nvidia/*/bin")]
    names = ("cuobjdump", "nvdisasm")
    return next((folder for folder in folders if all((folder / name).exists() for name in names)), None)


@dataclass(frozen=True)
class Code:
    """Numbers of machine instructions of a kernel or a loop, by kind."""

    total: int
    floating: int  # float32
    double: int  # float64
    local: int  # accesses to local memory

    @classmethod
    def of(cls, names: list[str]) -> Code:
        """Counts instructions by name."""
        kinds = [name.split(".")[0] for name in names]
        return cls(
            len(kinds),
            sum(kind in FLOAT for kind in kinds),
            sum(kind in DOUBLE for kind in kinds),
            sum(kind in ("LDL", "STL") for kind in kinds),
        )


def machine_code(cubin: Path) -> dict[str, tuple[Code, list[Code]]]:
    """For each kernel, its code and its innermost loops of at least 90 instructions, in order.

    A march has two such loops: one fills the filter, the next makes outputs. In a kernel that marches once, the last
    loop is the steady one. The fused kernel has one loop for each role, without a separate warm-up, and then one that
    adds the block's sums.
    """
    found = binary_tools()
    if found is None:
        raise SystemExit("pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm: they were not found")
    environment = {**os.environ, "PATH": f"{found}{os.pathsep}{os.environ.get('PATH', '')}"}
    command: list[str | Path] = [found / "cuobjdump", "-sass", cubin]
    text = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    kernels: dict[str, tuple[Code, list[Code]]] = {}
    for function in text.split("Function : ")[1:]:
        name = function.split()[0]
        pattern = r"/\*([0-9a-f]{4,6})\*/\s+(?:@!?U?PT?\d*\s+)?([A-Z][A-Z0-9_.]*)\s*([^;]*);"
        code = [(int(at, 16), op, rest) for at, op, rest in re.findall(pattern, function)]
        spans = []
        for at, op, rest in code:
            target = re.search(r"0x([0-9a-f]+)", rest) if op.startswith("BRA") else None
            if target and at - int(target[1], 16) >= 90 * 16:
                spans.append((int(target[1], 16), at))
        # Take the shortest loops that do not overlap. Longer spans only come from code that was moved out of a loop.
        inner: list[tuple[int, int]] = []
        for start, end in sorted(spans, key=lambda span: span[1] - span[0]):
            if all(end < first or start > last for first, last in inner):
                inner.append((start, end))
        loops = [Code.of([op for at, op, _ in code if start <= at <= end]) for start, end in sorted(inner)]
        # NOPs only fill the space after the last instruction.
        kernels[name] = (Code.of([op for _, op, _ in code if op != "NOP"]), loops)
    return kernels


def floating_an_output(kernel: str, loops: list[Code], length: int) -> float:
    """Floating-point instructions for an output, counted from the loops' bodies, for one segment of `length` steps.

    Only threads that have work are counted. A march fills its filter in the loop before the steady one. So does the
    fused kernel's backward role; its forward role works twice as long before the first output, and both walk 256
    columns for fewer outputs. In volumes, only the rows of a tile and its halo, times 8 groups, of the 256 threads have
    work, although the loop's body counts for all.
    """
    taps = _cuda_emulated.window_of(kernel)
    halo = taps - 1
    if "fused" in kernel:
        backward, forward = (loop.floating for loop in loops[:2])
        outputs = 256 if "lone" in kernel else 256 - halo
        return (backward * (1 + halo / length) + forward * (1 + (2 * taps - 1) / length)) / 2 * 256 / outputs
    idle = 0.0
    if "3d" in kernel:
        maps, squares = (3, 0) if "backward" in kernel else (4, 2)
        of_a_group = 4 * maps * taps + squares * (4 + halo)
        idle = (1 - (16 + halo) * 8 / 256) * of_a_group * (1 + halo / length)
    return (loops[-1].floating + loops[-2].floating * halo / length - idle) / 2


def check(
    architecture: str, folder: Path, emulated: dict[str, _cuda_emulated.Emulated]
) -> tuple[list[dict[str, object]], list[str]]:
    """One row for each kernel, and a message for each limit that is exceeded."""
    cubin, report = compile_kernels(architecture, folder)
    code, rows, faults = machine_code(cubin), [], []
    for kernel, found in sorted(report.items()):
        (whole, loops), bar, counts = code[kernel], BARS[kernel], emulated[kernel]
        marches = [] if not counts.length else loops[:2] if "fused" in kernel else loops[-1:]
        rows.append(
            {
                "architecture": architecture,
                "kernel": kernel,
                **found,
                "code": whole.total,
                "code_float64": whole.double,
                "loop": "+".join(str(loop.total) for loop in marches),
                "loop_float_an_output": "",
                "run": counts.use,
                "output": counts.unit,
                "float": f"{counts.floating:.1f}",
                "special": f"{counts.special:.1f}",
                "bytes_read": f"{counts.read_bytes:.2f}",
                "bytes_written": f"{counts.written_bytes:.2f}",
                "wavefronts_per_32": f"{counts.wavefronts:.1f}",
                "words": f"{counts.words:.1f}",
            }
        )
        limits = {
            "bytes of stack": (found["stack"], 0),
            "bytes of spills": (found["spills"], 0),
            "registers": (found["registers"], bar.registers),
            "bytes of shared memory": (found["shared"], bar.shared_bytes),
            "local accesses": (whole.local, 0),
            "bytes read": (counts.read_bytes, bar.read_bytes),
            "bytes written": (counts.written_bytes, bar.written_bytes),
            "wavefronts": (counts.wavefronts, bar.wavefronts),
        }
        if bar.wavefronts > 1:
            limits["wavefronts beside the words"] = (counts.wavefronts, 1.25 * counts.words)
        if bar.instructions:
            compiled = floating_an_output(kernel, loops, counts.length)
            rows[-1]["loop_float_an_output"] = f"{compiled:.1f}"
            # The loop of plain3d also contains branches that a call does not take.
            if "plain3d" not in kernel:
                most = max(0.02 * counts.floating, 2.0)
                limits["instructions between the counts"] = (abs(compiled - counts.floating), most)
            if len(marches) != len(bar.instructions):
                faults.append(f"{architecture} {kernel}: {len(marches)} loops, {len(bar.instructions)} expected")
            for loop, most in zip(marches, bar.instructions, strict=False):
                limits[f"instructions of the loop of {most}"] = (loop.total, most)
        faults += [
            f"{architecture} {kernel}: {value:.1f} {what}, at most {most:.1f}"
            for what, (value, most) in limits.items()
            if value > most
        ]
    return rows, faults


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csv", type=Path, default=ROOT / "benchmarks" / "results" / "cuda_static.csv")
    arguments = parser.parse_args()
    emulated = _cuda_emulated.run_all()
    rows, faults = [], []
    with tempfile.TemporaryDirectory() as folder:
        for architecture in ARCHITECTURES:
            more_rows, more_faults = check(architecture, Path(folder), emulated)
            rows += more_rows
            faults += more_faults
    columns = list(rows[0])
    arguments.csv.parent.mkdir(parents=True, exist_ok=True)
    with arguments.csv.open("w", newline="") as file:
        file.write(
            "# Static counts by scripts/cuda_counts.py, not measured on a GPU. code: instructions of the kernel.\n"
            "# loop: of one pass of the marching loop, for two outputs (fused: of each role); of general kernels\n"
            "# with the branches for types that a call does not take. From float on: counted by the emulation for an\n"
            "# output of the run; bytes include the halos of a small image. special: reciprocals and powers of two.\n"
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

"""The fuzzer's loop: checks random cases against the oracle for a given time and reports the findings.

    python -m tests.fuzz --seconds 600 --seed 1 --workers 2     # as `make fuzz SECONDS=600 SEED=1 WORKERS=2`
    python -m tests.fuzz --case 123456789012                     # one case again
    python -m tests.fuzz --emulation                             # CUDA's kernels by the host emulation

A case depends only on its number, which is seed · 10¹² + worker · 10¹⁰ + a count. Workers are separate processes, so a
call that kills the process is a finding as well, and the search goes on. A finding is printed as the smallest case that
still shows it, with the pixels where they are few; the exit code is then 1.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import faulthandler
import multiprocessing
import queue
import signal
import sys
import time
import traceback
from multiprocessing.queues import Queue
from typing import Any

import torch

from tests import devices, fuzz_cases, fuzz_checks
from tests.fuzz_cases import Case, RandomSource, images, lay_out, literal, mask_of
from tests.fuzz_checks import MismatchError

_SEED, _WORKER = 10**12, 10**10
#: Largest number of tries and of seconds to shrink a finding.
_TRIES, _SHRINK_SECONDS = 600, 30.0


def case_of(number: int, device: str, kinds: list[str] | None) -> Case:
    """Returns the case with this number."""
    return fuzz_cases.draw(RandomSource(number), device, kinds)


def find(case: Case, device: str) -> MismatchError | None:
    """Returns the finding of a case, if there is one. A defect of the fuzzer itself is a finding too."""
    try:
        fuzz_checks.check(case, device)
    except MismatchError as finding:
        return finding
    except Exception as error:
        return MismatchError(f"fuzzer {type(error).__name__}", "".join(traceback.format_exception(error)[-3:]))
    return None


def shrink(
    case: Case, finding: MismatchError, device: str, seconds: float = _SHRINK_SECONDS
) -> tuple[Case, MismatchError]:
    """Returns the simplest case, of those tried within a time, that shows a finding of the same kind."""
    if finding.setting is not None:
        case = dataclasses.replace(case, settings=(finding.setting,))
    deadline, tries = time.monotonic() + seconds, 0
    progress = True
    while progress and tries < _TRIES and time.monotonic() < deadline:
        progress = False
        for smaller in fuzz_cases.simpler(case):
            tries += 1
            again = find(smaller, device)
            if again is not None and again.kind == finding.kind:
                case, finding, progress = smaller, again, True
                break
            if tries >= _TRIES or time.monotonic() >= deadline:
                break
    return case, finding


def _tensor_code(tensor: torch.Tensor) -> str:
    """Returns code that makes a tensor with its strides, from a buffer of the elements that it spans."""
    dtype = str(tensor.dtype)
    last = sum((side - 1) * stride for side, stride in zip(tensor.shape, tensor.stride(), strict=True) if side > 1)
    span = tensor.as_strided((last + 1,), (1,)) if tensor.numel() else tensor.reshape(-1)
    values = ", ".join(repr(value) for value in span.tolist())
    built = f"torch.tensor([{values}], dtype={dtype})"
    if tensor.is_contiguous() and tensor.stride() == torch.empty(tensor.shape).stride():
        return f"{built}.reshape({tuple(tensor.shape)})"
    return f"{built}.as_strided({tuple(tensor.shape)}, {tensor.stride()})"


_CALLS = {
    "ssim_map": "splat_ssim.ops.ssim.ssim_map(img1, img2, splat_ssim.ops.ssim.Options(spatial_dims=%d%s))",
    "kornia.MS_SSIMLoss": "splat_ssim.compat.kornia.MS_SSIMLoss(%s)(img1, img2)",
}


def snippet(case: Case) -> str:
    """Returns lines of Python that call the function on the same tensors."""
    options = ", ".join(f"{name}={value!r}" for name, value in case.options.items())
    comma = ", " if options else ""
    (setting, *_) = case.settings
    lines = ["import torch, splat_ssim.loss, splat_ssim.registry, splat_ssim.compat.kornia"]
    tensors = [lay_out(image, setting.layouts[index])[0] for index, image in enumerate(images(case))]
    names = ["img1", "img2"]
    mask = mask_of(case)
    if mask is not None:
        tensors.append(lay_out(mask, setting.layouts[2])[0])
        names.append("mask")
    if sum(tensor.numel() for tensor in tensors) > 150:
        lines.append("from tests.fuzz_cases import *  # too many pixels to print")
        lines.append(f"case = {literal(case)}")
        lines += ["img1, img2 = images(case)"] + (["mask = mask_of(case)"] if mask is not None else [])
    else:
        lines += [f"{name} = {_tensor_code(tensor)}" for name, tensor in zip(names, tensors, strict=True)]
    masked = "" if mask is None else ", mask=mask"
    package, _, name = case.kind.rpartition(".")
    if package == "registry":
        call = f"splat_ssim.registry.LOSSES[{name!r}](img1, img2{masked}{comma}{options})"
    elif case.kind == "ssim_map":
        call = _CALLS[case.kind] % (case.spatial_dims, comma + options)
    elif case.kind in _CALLS:
        call = _CALLS[case.kind] % options
    else:
        module = {"": "splat_ssim"}.get(package, f"splat_ssim.compat.{package}")
        module = "splat_ssim.loss" if "loss" in name.lower() and not package else module
        constructed = name[0].isupper()
        if constructed:
            call = f"{module}.{name}({options})(img1, img2{masked})"
        else:
            call = f"{module}.{name}(img1, img2{masked}{comma}{options})"
    return "\n".join([*lines, call])


def report(number: int, case: Case, finding: MismatchError, device: str) -> str:
    """Describes a finding for people: what it is, the command that replays it, the smallest case and its code."""
    emulation = " --emulation" if device == "emulation" else ""
    try:
        code = "\n".join(f"    {line}" for line in snippet(case).splitlines())
    except Exception as error:  # The report must not fail where the tensors cannot be built.
        code = f"    (no snippet: {error})"
    return (
        f"FINDING {finding}\n  replay: python -m tests.fuzz --case {number}{emulation}\n"
        f"  smallest: {literal(case)}\n{code}\n"
    )


# --------------------------------------------------------------------------------------------------------------------
# The loop
# --------------------------------------------------------------------------------------------------------------------


def _device(name: str) -> contextlib.AbstractContextManager:
    return devices.use(name) if name == "emulation" else contextlib.nullcontext()


def _work(worker: int, first: int, options: argparse.Namespace, deadline: float, results: Queue, current: Any) -> None:
    """Tries case after case. `current` holds the number of the running case, in case it kills the process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    faulthandler.disable()
    calls, cases, number = 0, 0, first
    seen: collections.Counter[tuple[str, str]] = collections.Counter()
    last = time.monotonic()
    with _device(options.device):
        while time.monotonic() < deadline:
            current.value = number
            case = case_of(number, options.device, options.kinds)
            try:
                calls += fuzz_checks.check(case, options.device)
            except Exception:
                finding = find(case, options.device)
                if finding is None:
                    finding = MismatchError("unsteady", "the second run of the case found nothing")
                key = (case.kind, finding.kind)
                seen[key] += 1
                if seen[key] <= options.repeats:
                    smallest, finding = shrink(case, finding, options.device)
                    results.put(("finding", report(number, smallest, finding, options.device), key))
                else:
                    results.put(("again", "", key))
            cases += 1
            number += 1
            if time.monotonic() - last > 2:
                results.put(("count", (calls, cases), None))
                calls, cases, last = 0, 0, time.monotonic()
    results.put(("count", (calls, cases), None))
    results.put(("closest", dict(fuzz_checks.closest), None))
    current.value = -1


def loop(options: argparse.Namespace) -> int:
    """Runs the workers, prints what they find, and returns the exit code."""
    context = multiprocessing.get_context("spawn")
    results: Queue = context.Queue()
    start = time.monotonic()
    deadline = start + options.seconds
    print(f"seed {options.seed}, {options.seconds} s, {options.workers} workers, {options.device}", flush=True)
    workers: dict[int, tuple[Any, Any]] = {}

    def launch(worker: int, first: int) -> None:
        current = context.Value("q", first)
        process = context.Process(target=_work, args=(worker, first, options, deadline, results, current), daemon=True)
        process.start()
        workers[worker] = process, current

    for worker in range(options.workers):
        launch(worker, options.seed * _SEED + worker * _WORKER)
    total = collections.Counter({"calls": 0, "cases": 0})
    kinds: collections.Counter[tuple[str, str]] = collections.Counter()
    closest: dict[str, tuple[float, Case]] = {}
    minute = start
    while workers or not results.empty():
        try:
            what, content, key = results.get(timeout=0.5)
        except queue.Empty:
            what, content, key = "none", None, None
        if what == "count":
            total["calls"] += content[0]
            total["cases"] += content[1]
        elif what in ("finding", "again"):
            kinds[key] += 1
            if content and kinds[key] <= options.repeats:
                print(content, flush=True)
        elif what == "closest":
            for name, (ratio, case) in content.items():
                if ratio > closest.get(name, (0.0, case))[0]:
                    closest[name] = ratio, case
        for worker, (process, current) in list(workers.items()):
            if process.is_alive():
                continue
            del workers[worker]
            if current.value >= 0:  # The case did not end.
                number = current.value
                key = ("process", f"exit code {process.exitcode}")
                kinds[key] += 1
                if kinds[key] <= options.repeats:
                    case = case_of(number, options.device, options.kinds)
                    finding = MismatchError("process killed", f"the worker ended with exit code {process.exitcode}")
                    print(report(number, case, finding, options.device), flush=True)
                if time.monotonic() < deadline:
                    launch(worker, number + 1)
        if time.monotonic() - minute >= 60:
            minute += 60
            rate = total["calls"] / (time.monotonic() - start)
            counts = f"{total['calls']} calls, {total['cases']} cases, {rate:.0f} calls/s"
            print(f"{time.monotonic() - start:.0f} s: {counts}, {sum(kinds.values())} findings", flush=True)
    seconds = time.monotonic() - start
    print(
        f"seed {options.seed}: {total['calls']} calls of {total['cases']} cases in {seconds:.0f} s "
        f"({total['calls'] / seconds:.0f} a second), {sum(kinds.values())} findings"
    )
    for (function, kind), count in kinds.most_common():
        print(f"  {count} × {function}: {kind}")
    for name, (ratio, case) in sorted(closest.items()):
        if ratio <= 1:
            print(f"  closest to its bound, {name}: {ratio:.2f} by {literal(dataclasses.replace(case, settings=()))}")
    return 1 if kinds else 0


def replay(number: int, options: argparse.Namespace) -> int:
    """Runs one case again, and shrinks a finding."""
    torch.set_num_threads(1)
    faulthandler.enable()
    case = case_of(number, options.device, options.kinds)
    print(literal(case), flush=True)
    with _device(options.device):
        finding = find(case, options.device)
        if finding is None:
            print("nothing found")
            return 0
        print(finding)
        if options.shrink:
            case, finding = shrink(case, finding, options.device)
        print(report(number, case, finding, options.device))
    return 1


def main() -> int:
    """Parses the command line and runs it."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--case", type=int, help="replay one case by its number")
    parser.add_argument("--emulation", dest="device", action="store_const", const="emulation", default="cpu")
    parser.add_argument("--kinds", type=lambda text: text.split(","), help="only these functions, separated by commas")
    parser.add_argument("--repeats", type=int, default=2, help="findings of one kind and function that are printed")
    parser.add_argument("--no-shrink", dest="shrink", action="store_false", help="replay a case as it is")
    options = parser.parse_args()
    if options.case is not None:
        return replay(options.case, options)
    return loop(options)


if __name__ == "__main__":
    sys.exit(main())

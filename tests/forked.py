"""Processes that come of one server, which has imported torch and the trainer once for all of them."""

from contextlib import contextmanager

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

#: Where the system cannot fork, each process imports them itself.
START = "forkserver" if "forkserver" in mp.get_all_start_methods() else "spawn"
mp.set_forkserver_preload(["splat_ssim.distributed", "splat_ssim.scene.training", "splat_ssim.trainer.cli"])


def start(function, arguments, count):
    """Calls function(rank, *arguments) in processes of their own. What one of them raises is raised here."""
    mp.start_processes(function, arguments, nprocs=count, start_method=START)


@contextmanager
def group(folder, rank, count):
    """The process group of `count` processes, which meet in a file in `folder`. Each computes with one thread."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=count)
    try:
        yield
    finally:
        dist.destroy_process_group()

"""gsplat's `rasterization`: tensors on the CPU are rendered by our kernels, tensors on other devices by gsplat.

`install("gsplat")` replaces gsplat's own function by this one, so that a script written for gsplat runs without a GPU.
It has the signature of the installed gsplat (1.5.3 and 1.6 differ) and gives that version's images: alpha is clamped to
0.999 before 1.6 and to 0.99 from 1.6 on.

On the CPU it differs from the original in these ways. An option that our renderer lacks, or that a later gsplat has
added, raises an `UnsupportedOptionError` that names it, unless it has gsplat's default value. Tensors have no batch
axes before [N, 3] and [C, 4, 4], and all have the same dtype, float32 or float64. The returned `meta` lacks the lists
of tiles ("isect_ids" and others); reading one of them raises a KeyError that says so. From 1.6 on, gsplat's
"antialiased" never scales an opacity by less than 0.005. Ours scales it down to 0, which changes no pixel by more than
0.005.
"""

from __future__ import annotations

import inspect
import re
from typing import Any

import gsplat
import gsplat.rendering
from torch import Tensor

from splat_ssim import render
from splat_ssim.compat._errors import UnsupportedOptionError

__all__ = ["rasterization", "rasterization_2dgs"]

_theirs = gsplat.rendering.rasterization
_theirs_2dgs = gsplat.rendering.rasterization_2dgs
_SIGNATURE = inspect.signature(_theirs)


def _version() -> tuple[int, int]:
    numbers = re.match(r"(\d+)\.(\d+)", gsplat.__version__)
    if numbers is None:
        raise ImportError(f"gsplat.__version__ must start with two numbers, got {gsplat.__version__!r}")
    return int(numbers[1]), int(numbers[2])


#: The clamp of alpha that is compiled into gsplat.
_MAX_ALPHA = 0.99 if _version() >= (1, 6) else 0.999

#: Parameters that our renderer has with the same name and meaning.
_TAKEN = inspect.signature(render.rasterization).parameters.keys() & _SIGNATURE.parameters.keys()

#: Parameters that change how gsplat's kernels compute an image, but not the image.
_WITHOUT_EFFECT = {"channel_chunk", "segmented"}

_LISTS = ("tiles_per_gauss", "isect_ids", "flatten_ids", "isect_offsets")


class MissingListError(KeyError, ValueError):
    """One of gsplat's lists of tile intersections, which our renderer does not make."""

    def __str__(self) -> str:
        return str(self.args[0])


class Meta(dict[str, Any]):
    """The third result of `rasterization`. It is a dictionary that says why gsplat's lists of tiles are not in it."""

    def __missing__(self, key: str) -> Any:
        if key in _LISTS:
            raise MissingListError(f"meta[{key!r}] needs gsplat's lists of tiles, which exist on CUDA only")
        raise KeyError(key)


def rasterization(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Renders like gsplat's `rasterization`: on the CPU by `splat_ssim.render.rasterization`, elsewhere by gsplat.

    Args:
        *args: The arguments of the installed gsplat's function. This function has the same signature.
        **kwargs: The same. On the CPU, `channel_chunk` and `segmented` have no effect. If `tile_size` is not given, the
            size of the image decides; this changes no pixel.

    Returns:
        Images [C, H, W, D], alphas [C, H, W, 1] and `meta`, as in gsplat. See `splat_ssim.render.rasterization`.

    Raises:
        NotImplementedError: Our renderer lacks an option. The error is a ValueError too.
        ValueError, TypeError: In the same cases as `splat_ssim.render.rasterization`; or the arguments do not fit the
            signature.

    Example:
        >>> import torch
        >>> from splat_ssim.compat.gsplat_rendering import rasterization
        >>> means, quats, scales = torch.randn(100, 3), torch.randn(100, 4), torch.rand(100, 3) * 0.1
        >>> K = torch.tensor([[300.0, 0.0, 150.0], [0.0, 300.0, 100.0], [0.0, 0.0, 1.0]])
        >>> colors, alphas, meta = rasterization(
        ...     means, quats, scales, torch.rand(100), torch.rand(100, 3), torch.eye(4)[None], K[None], 300, 200)
        >>> colors.shape, alphas.shape
        (torch.Size([1, 200, 300, 3]), torch.Size([1, 200, 300, 1]))
    """
    bound = _SIGNATURE.bind(*args, **kwargs)
    means = bound.arguments["means"]
    if isinstance(means, Tensor) and means.device.type != "cpu":
        rendered: tuple[Tensor, Tensor, dict[str, Any]] = _theirs(*args, **kwargs)
        return rendered
    options = {name: value for name, value in bound.arguments.items() if name in _TAKEN}
    bound.apply_defaults()
    _check(bound.arguments)
    options["packed"] = bound.arguments["packed"]
    if options["colors"] is None and isinstance(means, Tensor):
        if "RGB" in bound.arguments["render_mode"]:
            raise ValueError(f"colors must be given for render_mode {bound.arguments['render_mode']!r}, got None")
        # Depth alone: what is rendered is the depth, and colours are not looked at.
        options["colors"] = means.new_zeros(len(means), 1)
        options["sh_degree"] = None
    images, alphas, info = render.rasterization(**options, max_alpha=_MAX_ALPHA)
    return images, alphas, Meta(info)


def rasterization_2dgs(*args: Any, **kwargs: Any) -> Any:
    """Calls gsplat's `rasterization_2dgs`. We have no renderer of 2D Gaussians, so tensors on the CPU are refused.

    Raises:
        NotImplementedError: The tensors are on the CPU. The error is a ValueError too.

    Example:
        >>> import torch
        >>> from splat_ssim.compat.gsplat_rendering import rasterization_2dgs
        >>> try:
        ...     rasterization_2dgs(torch.zeros(1, 3))
        ... except NotImplementedError as error:
        ...     print(error)
        rasterization_2dgs must be given CUDA tensors: splat_ssim renders 3D Gaussians on the CPU, got tensors on cpu
    """
    means = kwargs["means"] if "means" in kwargs else next(iter(args), None)
    if isinstance(means, Tensor) and means.device.type == "cpu":
        raise UnsupportedOptionError(
            "rasterization_2dgs must be given CUDA tensors: splat_ssim renders 3D Gaussians on the CPU, got "
            "tensors on cpu"
        )
    return _theirs_2dgs(*args, **kwargs)


for _function, _original in ((rasterization, _theirs), (rasterization_2dgs, _theirs_2dgs)):
    _function.__module__ = __name__
    vars(_function)["__signature__"] = inspect.signature(_original)


def _check(arguments: dict[str, Any]) -> None:
    """Raises unless every argument that our renderer lacks is at gsplat's default."""
    for name, value in arguments.items():
        default = _SIGNATURE.parameters[name].default
        if name in _TAKEN or name in _WITHOUT_EFFECT or value is default:
            continue
        if name == "sparse_grad" and not arguments["packed"]:
            continue  # as in gsplat, where it counts in packed mode alone
        if isinstance(value, Tensor) or value != default:
            got = f"a tensor {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
            raise UnsupportedOptionError(f"{name} must be {default!r}, gsplat's default, on the CPU, got {got}")

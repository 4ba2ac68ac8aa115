"""The interfaces of other packages, computed by this one, for code that you do not want to edit.

Either import `splat_ssim.compat.fused_ssim as fused_ssim` in the one place that needs it, or install our version under
the other package's name:

    import splat_ssim.compat
    splat_ssim.compat.install("fused_ssim", "pytorch_msssim")

After that, `import fused_ssim` gives our version everywhere. Install before you import the code that uses the package:
a name that a module has already bound by `from fused_ssim import fused_ssim` does not change. `uninstall` restores
everything.
"""

from __future__ import annotations

from splat_ssim.compat._install import install, uninstall

__all__ = ["install", "uninstall"]

"""The interfaces of other packages, computed by this one, for code that you do not want to edit.

Import `splat_ssim.compat.fused_ssim as fused_ssim` in a single place, or install ours under the other package's name:

    import splat_ssim.compat
    splat_ssim.compat.install("fused_ssim", "pytorch_msssim")

Then `import fused_ssim` gives ours everywhere. Install before importing the code that uses the package: a name that a
module has already bound by `from fused_ssim import fused_ssim` stays what it was. `uninstall` restores everything.
"""

from __future__ import annotations

from splat_ssim.compat._install import install, uninstall

__all__ = ["install", "uninstall"]

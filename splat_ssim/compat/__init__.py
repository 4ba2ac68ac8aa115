"""The interfaces of other packages, computed by this one, for code that one does not want to edit.

Import `splat_ssim.compat.fused_ssim as fused_ssim` in a single place, or install ours under the other package's name:

    import splat_ssim.compat
    splat_ssim.compat.install("fused_ssim", "pytorch_msssim")

Then `import fused_ssim` anywhere gives ours. Install before the code that uses the package is imported: a name that a
module has bound by `from fused_ssim import fused_ssim` before stays what it was. `uninstall` puts everything back.
"""

from __future__ import annotations

from splat_ssim.compat._install import install, uninstall

__all__ = ["install", "uninstall"]

"""Computed tomography with 3D Gaussians: the X-ray projector, its geometry, and the fit to measured projections."""

from __future__ import annotations

from .geometry import XrayGeometry, circle
from .project import project, project_field

__all__ = ["XrayGeometry", "circle", "project", "project_field"]

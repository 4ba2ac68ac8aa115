"""Fused, differentiable SSIM for images and volumes, and a Gaussian-splatting trainer around it."""

__version__ = "0.1.0"

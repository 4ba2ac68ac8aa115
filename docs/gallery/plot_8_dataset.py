"""
Your own dataset
================

The trainer reads Blender, COLMAP and nerfstudio folders. If your images and cameras are stored in
another way, build a ``Scene`` yourself: it is a list of views for training and one for testing.
"""

# %%
# Data in another format
# ----------------------
#
# Suppose that your recordings are one file with all images and a camera for each: a matrix from camera
# to world in OpenGL's convention (x right, y up, z backwards), and a focal length in pixels. We write
# such a file first, out of the chair.

import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch

import splat_ssim
from splat_ssim.scene import train
from splat_ssim.scene.data import Scene, View, load_scene

ASSETS = Path(splat_ssim.__file__).resolve().parent.parent / "assets"  # of the source folder
OPENGL = np.diag([1.0, -1.0, -1.0, 1.0])  # OpenGL's axes in OpenCV's

chair = load_scene(ASSETS / "chair_200", factor=4)
views = chair.train[::2]
file = Path(tempfile.mkdtemp()) / "recording.npz"
np.savez(
    file,
    images=np.stack([(255 * view.pixels()[0].permute(1, 2, 0)).round().byte().numpy() for view in views]),
    camera_to_world=np.stack([np.linalg.inv(view.viewmat.numpy()) @ OPENGL for view in views]),
    focal=float(views[0].K[0, 0]),
)

# %%
# The reader
# ----------
#
# ``View`` wants the matrix from world to camera in OpenCV's convention (x right, y down, z forward) and
# the intrinsics in pixels, with the centre of the first pixel at (0.5, 0.5). Images may stay bytes; the
# trainer reads them as they are.


def read_recording(path, test_every=8):
    """A `Scene` of an npz file with images, camera_to_world and focal."""
    with np.load(path) as data:
        images, poses, focal = data["images"], data["camera_to_world"], float(data["focal"])
    height, width = images.shape[1:3]
    K = torch.tensor([[focal, 0.0, width / 2], [0.0, focal, height / 2], [0.0, 0.0, 1.0]])
    every = [
        View(
            name=f"frame {index}",
            viewmat=torch.from_numpy(np.linalg.inv(pose @ OPENGL)).float(),
            K=K,
            image=torch.from_numpy(image),
            background=(1.0, 1.0, 1.0),
        )
        for index, (image, pose) in enumerate(zip(images, poses, strict=True))
    ]
    test = every[::test_every]
    train_views = [view for index, view in enumerate(every) if index % test_every]
    for index, view in enumerate(train_views):
        view.index = index
    return Scene(
        name=path.stem,
        train=train_views,
        test=test,
        background=(1.0, 1.0, 1.0),  # behind the Gaussians
        box=((-1.0, -1.0, -1.0), (1.0, 1.0, 1.0)),  # the first Gaussians start here
    )


scene = read_recording(file)
print(f"{len(scene.train)} views to train on and {len(scene.test)} to test, of {scene.train[0].image.shape}")

# %%
# Train it
# --------
#
# ``train`` takes a scene in place of a folder. There is no sparse reconstruction to start from, so the
# Gaussians start at random points of the scene's box.

trained = train(
    scene,
    preset="object",
    quality="fast",
    steps=400,
    budget=3_000,
    device="cpu",
)
print(f"test views: PSNR {trained.metrics['psnr']:.2f} dB, SSIM {trained.metrics['ssim']:.4f}")

# %%
# If the poses were read wrongly, the training would not converge. So look at a test view.

view = scene.test[1]
figure, axes = plt.subplots(1, 2, figsize=(7, 3.6))
axes[0].imshow(view.pixels()[0].permute(1, 2, 0))
axes[0].set_title(view.name)
axes[1].imshow(trained.render(view).detach())
axes[1].set_title("render")
for place in axes:
    place.axis("off")
figure.tight_layout()
plt.show()

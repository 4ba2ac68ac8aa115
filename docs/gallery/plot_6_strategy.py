"""
Your own densification strategy
===============================

A densification strategy decides when Gaussians are added and removed. Our strategies have gsplat's
interface. A strategy that you write with this interface runs in our trainer and in any loop that was
written for gsplat. This page writes a strategy of twenty lines and the training loop around it.
"""

# %%
# The strategy
# ------------
#
# A strategy has two hooks, before and after ``loss.backward()``. This one adds a copy of the Gaussians
# whose projected centres have the largest gradients, and removes those that have become transparent.
# ``replace_parameters`` changes the parameters and carries the state of their optimisers along.

from pathlib import Path

import matplotlib.pyplot as plt
import torch

import splat_ssim
from splat_ssim.render import rasterization
from splat_ssim.scene.data import load_scene
from splat_ssim.strategy import Strategy
from splat_ssim.strategy.operations import replace_parameters

ASSETS = Path(splat_ssim.__file__).resolve().parent.parent / "assets"  # of the source folder


class CopyTheBusiest(Strategy):
    """Every `every` steps: removes the transparent, copies the `share` with the largest gradients."""

    def __init__(self, every=50, share=0.2, min_opacity=0.01):
        self.every, self.share, self.min_opacity = every, share, min_opacity

    def initialize_state(self, scene_scale=1.0):
        return {"gradients": None}

    def step_pre_backward(self, params, optimizers, state, step, info):
        info["means2d"].retain_grad()

    @torch.no_grad()
    def step_post_backward(self, params, optimizers, state, step, info, packed=False):
        gradients = info["means2d"].grad.norm(dim=-1).sum(0)  # (N,), over the cameras of this step
        state["gradients"] = gradients if state["gradients"] is None else state["gradients"] + gradients
        if step == 0 or step % self.every:
            return
        kept = (params["opacities"].sigmoid() > self.min_opacity).nonzero().squeeze(1)
        busiest = kept[state["gradients"][kept].topk(int(self.share * len(kept))).indices]
        rows = torch.cat([kept, busiest])
        replace_parameters(
            params,
            optimizers,
            # A copy is moved by a little: two equal Gaussians would have equal gradients for ever.
            lambda name, values: values[rows] + (1e-3 * torch.randn(len(rows), 3) if name == "means" else 0),
            # A copy starts without the momentum of its original.
            lambda moment: torch.cat([moment[kept], torch.zeros_like(moment[busiest])]),
        )
        state["gradients"] = None


# %%
# The loop
# --------
#
# ``rasterization`` is gsplat's function, computed by our kernels on a CPU and by gsplat on a GPU. With
# ``raw=True`` it takes logarithms of scales and logits of opacities, which is what trainers keep.

scene = load_scene(ASSETS / "chair_200", factor=4)
torch.manual_seed(0)
count = 800
params = torch.nn.ParameterDict(
    {
        "means": 1.6 * torch.rand(count, 3) - 0.8,
        "scales": torch.full((count, 3), -2.7),
        "quats": torch.nn.functional.normalize(torch.randn(count, 4), dim=1),
        "opacities": torch.full((count,), -1.0),
        "colors": torch.rand(count, 3),
    }
)
rates = {"means": 4e-3, "scales": 1e-2, "quats": 5e-3, "opacities": 5e-2, "colors": 2e-2}
optimizers = {name: torch.optim.Adam([params[name]], lr=rate) for name, rate in rates.items()}


def render(view):
    image, _, info = rasterization(
        params["means"],
        params["quats"],
        params["scales"],
        params["opacities"],
        params["colors"],
        view.viewmat[None],
        view.K[None],
        view.width,
        view.height,
        backgrounds=torch.ones(1, 3),
        raw=True,
    )
    return image, info


strategy = CopyTheBusiest()
strategy.check_sanity(params, optimizers)
state = strategy.initialize_state()
counts = []
for step in range(400):
    view = scene.train[step % len(scene.train)]
    image, info = render(view)
    truth = view.pixels().permute(0, 2, 3, 1)  # (1, H, W, 3), as the renderer has it
    loss = splat_ssim.photometric_loss(image, truth, channels_last=True)
    strategy.step_pre_backward(params, optimizers, state, step, info)
    loss.backward()
    for optimizer in optimizers.values():
        optimizer.step()
        optimizer.zero_grad()
    if step < 300:
        strategy.step_post_backward(params, optimizers, state, step, info)
    counts.append(len(params["means"]))

view = scene.test[18]
with torch.no_grad():
    image, _ = render(view)
score = splat_ssim.ssim(image, view.pixels().permute(0, 2, 3, 1), channels_last=True)
print(f"from {count} to {counts[-1]} Gaussians; SSIM of a test view {float(score):.4f}")

# %%
# Every 50 steps the strategy adds Gaussians. ``CappedStrategy``, ``MCMCStrategy`` and
# ``TamingStrategy`` of ``splat_ssim.strategy`` never exceed a budget.

figure, axes = plt.subplots(1, 3, figsize=(11, 3.6))
axes[0].plot(counts)
axes[0].set(xlabel="step", title="number of Gaussians")
axes[1].imshow(view.pixels()[0].permute(1, 2, 0))
axes[1].set_title("test view")
axes[2].imshow(image[0].clamp(0, 1))
axes[2].set_title("render")
for place in axes[1:]:
    place.axis("off")
figure.tight_layout()
plt.show()

"""Adam compared with torch's, and the sparse form compared with its formula."""

import copy

import pytest
import torch

from splat_ssim.optim import Adam, SelectiveAdam, step_together

SHAPES = [(1,), (7,), (5, 3), (400, 15, 3), (40000,)]


def parameters(dtype=torch.float32):
    g = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape, generator=g).to(dtype)) for shape in SHAPES]


def give_gradients(params, step):
    g = torch.Generator().manual_seed(100 + step)
    for p in params:
        # Magnitudes range from 1e-8 to 1, so that epsilon and the roots matter.
        p.grad = (torch.randn(p.shape, generator=g) * 10 ** (-8 * torch.rand(p.shape, generator=g))).to(p.dtype)


def groups(params):
    return [{"params": params[:2], "lr": 0.01}, {"params": params[2:], "lr": 0.1, "betas": (0.8, 0.99), "eps": 1e-15}]


def test_same_as_torch():
    ours, theirs = parameters(), parameters()
    a, b = Adam(groups(ours)), torch.optim.Adam(groups(theirs))
    for step in range(20):
        give_gradients(ours, step)
        give_gradients(theirs, step)
        a.step()
        b.step()
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=2e-6)
        assert a.state[p].keys() == b.state[q].keys()
        for name, value in b.state[q].items():
            torch.testing.assert_close(a.state[p][name], value, rtol=1e-5, atol=1e-7)


def test_together_is_each_by_itself():
    """This also holds if one optimiser is torch's own, has an option of torch's, or has a hook."""
    together, alone, hooked = parameters(), parameters(), []
    kinds = [{}, {"lr": 0.1}, {"weight_decay": 0.1}, {}, {"eps": 1e-15}]
    a, b = ([Adam([p], **kind) for p, kind in zip(params, kinds, strict=True)] for params in (together, alone))
    a[3], b[3] = torch.optim.Adam([together[3]]), torch.optim.Adam([alone[3]])
    a[4].register_step_post_hook(lambda *_: hooked.append(True))
    for step in range(3):
        give_gradients(together, step)
        give_gradients(alone, step)
        step_together(a)
        for optimizer in b:
            optimizer.step()
    for p, q in zip(together, alone, strict=True):
        assert torch.equal(p, q)
    assert len(hooked) == 3
    step_together([])


def test_state_goes_to_torch_and_back():
    ours, theirs = parameters(), parameters()
    a, b = Adam(groups(ours)), torch.optim.Adam(groups(theirs))
    for step in range(6):
        give_gradients(ours, step)
        give_gradients(theirs, step)
        a.step()
        b.step()
        first, second = copy.deepcopy(a.state_dict()), copy.deepcopy(b.state_dict())
        a.load_state_dict(second)
        b.load_state_dict(first)
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("options", [{"weight_decay": 0.1}, {"amsgrad": True}, {"maximize": True}])
def test_other_options_are_torchs(options):
    ours, theirs = parameters(), parameters()
    a, b = Adam(ours, **options), torch.optim.Adam(theirs, **options)
    for step in range(3):
        give_gradients(ours, step)
        give_gradients(theirs, step)
        a.step()
        b.step()
    assert all(torch.equal(p, q) for p, q in zip(ours, theirs, strict=True))


def test_float64_and_closure():
    ours, theirs = parameters(torch.float64), parameters(torch.float64)
    give_gradients(ours, 0)
    give_gradients(theirs, 0)
    assert Adam(ours).step(lambda: torch.tensor(3.0)).item() == 3.0
    torch.optim.Adam(theirs).step()
    assert all(torch.equal(p, q) for p, q in zip(ours, theirs, strict=True))


def test_gradients_that_are_not_dense_or_absent():
    p, q, r = (torch.nn.Parameter(torch.ones(6, 4)) for _ in range(3))
    p.grad = torch.randn(4, 6).T
    q.grad = p.grad.contiguous()
    Adam([p, r]).step()
    Adam([q]).step()
    assert torch.equal(p, q)
    assert torch.equal(r, torch.ones(6, 4))


def test_threads_change_nothing(threads):
    results = []
    for number in (1, 2, 5):
        threads(number)
        params = parameters()
        optimizer = Adam(params)
        for step in range(3):
            give_gradients(params, step)
            optimizer.step()
        results.append(params)
    for other in results[1:]:
        assert all(torch.equal(p, q) for p, q in zip(results[0], other, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(50, 3), (50,), (50, 15, 3), (3000, 4)])
def test_selective_formula(dtype, shape):
    g = torch.Generator().manual_seed(0)
    p = torch.nn.Parameter(torch.randn(shape, generator=g).to(dtype))
    wanted, m, v = p.detach().double().clone(), torch.zeros(shape).double(), torch.zeros(shape).double()
    optimizer = SelectiveAdam([p], lr=0.05, eps=1e-8)
    for step in range(5):
        give_gradients([p], step)
        visible = torch.rand(shape[0], generator=g) < 0.4
        optimizer.step(visible)
        rows, grad = visible.reshape(-1, *[1] * (len(shape) - 1)), p.grad.double()
        m = torch.where(rows, 0.9 * m + 0.1 * grad, m)
        v = torch.where(rows, 0.999 * v + 0.001 * grad**2, v)
        wanted = torch.where(rows, wanted - 0.05 * m / (v.sqrt() + 1e-8), wanted)
    torch.testing.assert_close(p.detach().double(), wanted, rtol=1e-5, atol=5e-6)


def test_selective_touches_nothing_else():
    p = torch.nn.Parameter(torch.randn(10, 3))
    before = p.detach().clone()
    optimizer = SelectiveAdam([p])
    p.grad = torch.randn(10, 3)
    optimizer.step(torch.zeros(10, dtype=torch.bool))
    assert torch.equal(p, before)
    assert optimizer.state[p]["exp_avg"].abs().max() == 0


def test_selective_errors():
    p = torch.nn.Parameter(torch.randn(10, 3))
    p.grad = torch.randn(10, 3)
    with pytest.raises(TypeError, match=r"bool tensor, got torch\.float32"):
        SelectiveAdam([p]).step(torch.ones(10))
    with pytest.raises(ValueError, match=r"shape \(10,\), got \(9,\)"):
        SelectiveAdam([p]).step(torch.ones(9, dtype=torch.bool))
    with pytest.raises(ValueError, match="lr >= 0"):
        SelectiveAdam([p], lr=-1.0)

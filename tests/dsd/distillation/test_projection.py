"""The projection onto the pixel range."""

import torch

from dsd.distillation.projection import project_to_range


def test_values_are_clamped():
    x = torch.tensor([[-1.5, -1.0, 0.3, 1.0, 2.0]])
    assert project_to_range(x).tolist() == [[-1.0, -1.0, 0.30000001192092896, 1.0, 1.0]]


def test_gradients_pass_unless_a_descent_step_leads_further_outside():
    x = torch.tensor([[-1.5, -1.5, 0.3, 0.3, 2.0, 2.0]], requires_grad=True)
    upstream = torch.tensor([[1.0, -1.0, 1.0, -1.0, 1.0, -1.0]])
    project_to_range(x).backward(upstream)
    assert x.grad.tolist() == [[0.0, -1.0, 1.0, -1.0, 1.0, 0.0]]


def test_descent_through_the_projection_reaches_a_target_from_outside():
    """Where a plain clamp has no gradient and stays for ever."""
    x = torch.tensor([[-3.0, 3.0]], requires_grad=True)
    optimizer = torch.optim.SGD([x], lr=0.2)
    target = torch.tensor([[0.5, -1.0]])
    for _ in range(200):
        optimizer.zero_grad()
        (project_to_range(x) - target).square().sum().backward()
        optimizer.step()
    torch.testing.assert_close(project_to_range(x), target, atol=1e-3, rtol=0)

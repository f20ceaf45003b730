import numpy as np
import pytest
import torch
from scipy.linalg import expm

from policies.generation.grids import uniform
from policies.generation.solvers import SOLVERS, integrate, stage_times

M = np.array([[-1.0, 2.0, 0.3], [-2.0, -0.5, 0.0], [0.1, 0.7, -1.5]])
FORCE = np.array([1.0, -2.0, 0.5])
X0 = np.array([1.0, -1.0, 0.5])


def solve(name, steps, derivative, x0):
    """Integrates dx/dt = derivative(x, t) in float64."""
    tableau = SOLVERS[name]
    times = stage_times(tableau, uniform(steps))
    return integrate(lambda x, i: derivative(x, times[i]), torch.as_tensor(x0), tableau, uniform(steps))


def linear_case():
    """x' = M x + FORCE t, solved by the exponential of the matrix that moves (x, t, 1)."""
    augmented = np.zeros((5, 5))
    augmented[:3, :3], augmented[:3, 3], augmented[3, 4] = M, FORCE, 1.0
    matrix, force = torch.as_tensor(M), torch.as_tensor(FORCE)
    exact = (expm(augmented) @ np.concatenate([X0, [0.0, 1.0]]))[:3]
    return lambda x, t: matrix @ x + force * t, X0, exact


def nonlinear_case():
    """x' = -2 t x^2, x(0) = c, solved by x = c / (1 + c t^2)."""
    x0 = np.array([0.5, 1.0, 2.0])
    return lambda x, t: -2 * t * x**2, x0, x0 / (1 + x0)


@pytest.mark.parametrize("case", [linear_case, nonlinear_case])
@pytest.mark.parametrize("name", SOLVERS)
def test_the_error_falls_with_the_stated_order(name, case):
    derivative, x0, exact = case()
    steps = np.array([16, 32, 64, 128])
    errors = [np.abs(solve(name, int(n), derivative, x0).numpy() - exact).max() for n in steps]
    order = -np.polyfit(np.log(steps), np.log(errors), 1)[0]
    assert order == pytest.approx(SOLVERS[name].order, abs=0.15)


@pytest.mark.parametrize("name", SOLVERS)
def test_stages_lie_where_their_own_coefficients_put_them(name):
    tableau = SOLVERS[name]
    assert [sum(row) for row in tableau.a] == pytest.approx(list(tableau.c))
    assert sum(tableau.b) == pytest.approx(1)
    assert [len(row) for row in tableau.a] == list(range(tableau.stages))
    assert len(tableau.b) == tableau.stages


@pytest.mark.parametrize("name", SOLVERS)
def test_the_velocity_is_asked_once_for_every_stage_in_order(name):
    asked = []
    integrate(lambda x, i: asked.append(i) or torch.zeros_like(x), torch.zeros(2), SOLVERS[name], uniform(3))
    assert asked == list(range(3 * SOLVERS[name].stages))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("euler", [0, 0.5]),
        ("midpoint", [0, 0.25, 0.5, 0.75]),
        ("heun", [0, 0.5, 0.5, 1]),
        ("rk4", [0, 0.25, 0.25, 0.5, 0.5, 0.75, 0.75, 1]),
    ],
)
def test_stage_times_of_two_steps(name, expected):
    assert stage_times(SOLVERS[name], uniform(2)) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [  # one step of x' = x + t from x = 1, by hand
        ("euler", 2.0),  # 1 + 1
        ("midpoint", 3.0),  # k2 = 1.5 + 0.5 = 2
        ("heun", 3.0),  # k1 = 1, k2 = 2 + 1 = 3, mean 2
        ("rk4", 1 + (1 + 2 * 2 + 2 * 2.5 + 4.5) / 6),  # k = 1, 1.5 + 0.5, 2 + 0.5, 3.5 + 1
    ],
)
def test_one_step_by_hand(name, expected):
    assert solve(name, 1, lambda x, t: x + t, [1.0]).item() == pytest.approx(expected)


@pytest.mark.parametrize("name", SOLVERS)
def test_a_constant_velocity_is_integrated_exactly_and_the_start_is_left_alone(name):
    start = torch.randn(3, 4, 2)
    before, velocity = start.clone(), torch.randn(3, 4, 2)
    torch.testing.assert_close(integrate(lambda x, i: velocity, start, SOLVERS[name], uniform(7)), start + velocity)
    assert torch.equal(start, before)

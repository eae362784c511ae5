"""`KFAC` and its kin against dense linear algebra: steps, quadratic model, damping, resumption."""

import copy
import io

import pytest
import torch
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.optim.quadratic import Quadratic, QuadraticModel
from hbpcompiler.optim.together import Together
from tests.optim.models import chain, close, flat, gradient, mean_loss, tokens, values, whole_ggn
from tests.selection import few, slow

NO_DRAWS = {"curvature": "kflr", "split": "exact", "update_every": 1, "invert_every": 1, "ema": 0.0}


def dense_kflr(model, X, y):
    """[D, D] of the two layers of `chain`, weight and bias together, as a function of flat gradients."""
    factors = hbp.compile(model, mean_loss, ["kflr"], joint_bias=True)(X, y)
    return hbp.curvature(factors.kflr).to_dense()


def moved(model, before):
    return flat({name: value - before[name] for name, value in values(model).items()})


def test_steps_with_momentum_l2_and_weight_decay():
    model, X, y = chain()
    optimizer = hbp.optim.KFAC(model, None, lr=0.2, momentum=0.7, damping=0.3, l2=0.05, weight_decay=0.1, **NO_DRAWS)
    velocity = 0.0
    for step in range(3):
        before, own = values(model), flat(gradient(model, mean_loss, X, y))
        theta = flat(before)
        C = dense_kflr(model, X, y) + 0.35 * torch.eye(len(theta)).double()
        velocity = 0.7 * velocity - 0.2 * torch.linalg.solve(C, own + 0.05 * theta)
        expected_loss = mean_loss(model(X), y).detach()
        loss = optimizer.step(X, y)
        close(loss, expected_loss, "loss")
        close(moved(model, before), velocity - 0.2 * 0.1 * theta, f"step {step}")
        close(flat({name: parameter.grad for name, parameter in model.named_parameters()}), own, "p.grad")


def test_groups_have_numbers_of_their_own_and_schedulers_set_them():
    model, X, y = chain()
    optimizer = hbp.optim.KFLR(model, None, [{"params": model[0].parameters(), "lr": 0.5, "damping": 0.1},
                                             {"params": model[2].parameters()}], lr=0.2, momentum=0.0, damping=0.3,
                               split="exact", update_every=1, invert_every=1, ema=0.0)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.1)
    for factor in (1.0, 0.1):
        before, own = values(model), flat(gradient(model, mean_loss, X, y))
        first = torch.arange(len(own)) < 16
        damping = torch.where(first, 0.1, 0.3).double()
        C = dense_kflr(model, X, y) + damping.diag()
        optimizer.step(X, y)
        scheduler.step()
        rates = factor * torch.where(first, 0.5, 0.2).double()
        close(moved(model, before), -rates * torch.linalg.solve(C, own), f"rates times {factor}", 1e-7)


def test_step_and_momentum_from_the_quadratic_model():
    """v = w1 (-C^-1 g) + w2 v_before minimises q with the batch's exact GGN, damping and l2."""
    model, X, y = chain()
    optimizer = hbp.optim.KFAC(model, None, lr=None, momentum=None, damping=0.3, l2=0.05, **NO_DRAWS)
    velocity = None
    for step in range(3):
        before, G = values(model), whole_ggn(model, mean_loss, X, y)
        theta, identity = flat(before), torch.eye(len(flat(before))).double()
        own = flat(gradient(model, mean_loss, X, y)) + 0.05 * theta
        direction = -torch.linalg.solve(dense_kflr(model, X, y) + 0.35 * identity, own)
        V = direction.unsqueeze(1) if velocity is None else torch.stack([direction, velocity], 1)
        w = torch.linalg.solve(V.T @ (G + 0.35 * identity) @ V, -V.T @ own)
        velocity = V @ w
        optimizer.step(X, y)
        close(moved(model, before), velocity, f"step {step}", 1e-7)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(w[0].item(), rel=1e-6)


def test_one_of_step_and_momentum_from_the_quadratic_model():
    model, X, y = chain()
    optimizer = hbp.optim.KFAC(model, None, lr=0.2, momentum=None, damping=0.3, **NO_DRAWS)
    before = values(model)
    optimizer.step(X, y)
    velocity = moved(model, before)
    before, own, G = values(model), flat(gradient(model, mean_loss, X, y)), whole_ggn(model, mean_loss, X, y)
    identity = torch.eye(len(own)).double()
    first = -0.2 * torch.linalg.solve(dense_kflr(model, X, y) + 0.3 * identity, own)
    damped = G + 0.3 * identity
    momentum = -(velocity @ (own + damped @ first)) / (velocity @ damped @ velocity)
    optimizer.step(X, y)
    close(moved(model, before), first + momentum * velocity, "second step", 1e-7)


def test_a_step_of_each_group_and_their_common_momentum():
    """Groups with a given lr of their own, a momentum from the quadratic model along their common step."""
    model, X, y = chain()
    weights = list(model.parameters())
    groups = [{"params": weights[:2], "lr": 0.2}, {"params": weights[2:], "lr": 0.5}]
    optimizer = hbp.optim.KFAC(model, None, groups, lr=1.0, momentum=None, damping=0.3, **NO_DRAWS)
    rates = torch.cat([torch.full((parameter.numel(),), 0.2 if number < 2 else 0.5) for number, parameter
                       in enumerate(weights)]).double()
    before = values(model)
    optimizer.step(X, y)
    velocity = moved(model, before)
    before, own, G = values(model), flat(gradient(model, mean_loss, X, y)), whole_ggn(model, mean_loss, X, y)
    identity = torch.eye(len(own)).double()
    first = -rates * torch.linalg.solve(dense_kflr(model, X, y) + 0.3 * identity, own)
    damped = G + 0.3 * identity
    momentum = -(velocity @ (own + damped @ first)) / (velocity @ damped @ velocity)
    optimizer.step(X, y)
    close(moved(model, before), first + momentum * velocity, "second step", 1e-7)


def test_the_quadratic_model_is_the_exact_ggn_along_its_directions():
    model, X, y = tokens()
    named = dict(model.named_parameters())
    directions = [{name: torch.randn_like(parameter) for name, parameter in named.items()} for _ in range(2)]
    own = gradient(model, mean_loss, X, y)
    some = dict.fromkeys(named, 0.3)
    quadratic = QuadraticModel(model, mean_loss, 0, Together(None))
    found = quadratic.along((X, y), directions, own, some, dict.fromkeys(named, 0.1), 0)
    quadratic._of(tuple(named))._without_forward = True  # as where torch has no forward mode
    again = quadratic.along((X, y), directions, own, some, dict.fromkeys(named, 0.1), 0)
    close(again.curvature, found.curvature, "products")
    V = torch.stack([flat(direction) for direction in directions], 1)
    close(found.curvature, V.T @ whole_ggn(model, mean_loss, X, y) @ V + 0.1 * V.T @ V, "curvature")
    close(found.damping, 0.3 * V.T @ V, "damping")
    close(found.slope, V.T @ flat(own), "slope")
    w = torch.tensor([0.5, -1.0]).double()
    assert found.change(w) == pytest.approx(float(w @ found.curvature @ w / 2 + found.slope @ w))


def test_damping_follows_the_reduction_ratio():
    """On a linear model with squared error q is exact: rho is 1 and the damping falls, to its lowest value at most."""
    torch.manual_seed(0)
    model = nn.Linear(3, 2).double()
    X, y = torch.randn(8, 3).double(), torch.randn(8, 2).double()
    optimizer = hbp.optim.KFAC(model, nn.MSELoss(), lr=0.1, momentum=0.5, damping=1.0, l2=0.1, adapt_damping=True,
                               adapt_every=2, least_damping=0.85, **NO_DRAWS)
    for expected in (1.0, 0.95**2, 0.95**2, 0.85):
        optimizer.step(X, y)
        assert optimizer.param_groups[0]["damping"] == pytest.approx(expected)
    assert optimizer.last_ratio == pytest.approx(1.0, rel=1e-6)


@few(2, "further cases of one kind")
@pytest.mark.parametrize(("damping", "then"), [(1.0, 0.95), (1.01e-3, 1e-3), (1e-3, 1e-3), (1e-5, 1e-5)])
def test_damping_does_not_fall_for_ever(damping, then):
    """Where the ratio is always 1; one that was given below the least damping stays."""
    torch.manual_seed(0)
    model = nn.Linear(3, 2).double()
    X, y = torch.randn(8, 3).double(), torch.randn(8, 2).double()
    optimizer = hbp.optim.KFAC(model, nn.MSELoss(), lr=0.1, momentum=0.0, damping=damping, adapt_damping=True,
                               adapt_every=1, **NO_DRAWS)
    optimizer.step(X, y)
    assert optimizer.last_ratio == pytest.approx(1.0, rel=1e-6)
    assert optimizer.param_groups[0]["damping"] == pytest.approx(then, rel=1e-12)


def test_damping_grows_and_the_step_is_rejected_where_the_loss_rises():
    model, X, y = chain()
    optimizer = hbp.optim.KFAC(model, None, lr=300.0, momentum=0.0, damping=1e-2, adapt_damping=True, adapt_every=1,
                               reject=True, **NO_DRAWS)
    before = values(model)
    optimizer.step(X, y)
    assert optimizer.last_ratio < 0.25
    assert optimizer.param_groups[0]["damping"] == pytest.approx(1e-2 / 0.95)
    assert all(torch.equal(value, before[name]) for name, value in values(model).items())


def test_norm_constraint():
    model, X, y = chain()
    before, own = values(model), flat(gradient(model, mean_loss, X, y))
    free = 0.2 * torch.linalg.solve(dense_kflr(model, X, y) + 0.3 * torch.eye(len(own)).double(), own)
    bound = float(0.2 * free @ own) / 9
    hbp.optim.KFAC(model, None, lr=0.2, momentum=0.0, damping=0.3, norm_constraint=bound, **NO_DRAWS).step(X, y)
    close(moved(model, before), -free / 3, "a third as long")


def test_the_step_does_not_depend_on_the_scale_of_the_loss():
    """c times the loss with c times the damping."""
    found = []
    for scale in (1.0, 50.0):
        model, X, y = tokens()

        def loss(output, target, scale=scale):
            return scale * mean_loss(output, target)

        optimizer = hbp.optim.KFLR(model, loss, lr=0.2, damping=0.3 * scale, largest_factor=6)
        before = values(model)
        optimizer.step(X, y)
        found.append(moved(model, before))
    close(found[1], found[0], "step")


def test_a_closure_gives_the_gradient():
    model, X, y = chain()
    _, other, labels = chain(1)
    optimizer = hbp.optim.KFAC(model, None, lr=0.2, momentum=0.0, damping=0.3, **NO_DRAWS)
    before = values(model)
    C = dense_kflr(model, X, y) + 0.3 * torch.eye(len(flat(before))).double()
    own = flat(gradient(model, mean_loss, other, labels))

    def closure():
        optimizer.zero_grad()
        loss = mean_loss(model(other), labels)
        loss.backward()
        return loss

    assert optimizer.step(X, y, closure=closure).item() == pytest.approx(mean_loss(
        torch.func.functional_call(model, before, (other,)), labels).item())
    close(moved(model, before), -0.2 * torch.linalg.solve(C, own), "step")


@few(1, "further cases of one kind")
@pytest.mark.parametrize("curvature", ["kfac", "ekfac"])
def test_resumption_in_the_middle_of_an_interval_is_bit_equal(curvature):
    options = {"lr": 0.05, "curvature": curvature, "damping": 0.1, "update_every": 2, "invert_every": 4,
               "largest_factor": 6, "adapt_damping": True, "adapt_every": 3}

    def run(optimizer, scheduler, steps, X, y):
        for _ in range(steps):
            optimizer.step(X, y)
            scheduler.step()

    once, X, y = tokens()
    again = copy.deepcopy(once)
    optimizer = hbp.optim.KFAC(once, None, **options)
    run(optimizer, torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9), 7, X, y)

    optimizer = hbp.optim.KFAC(again, None, **options)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    run(optimizer, scheduler, 3, X, y)
    file = io.BytesIO()
    torch.save([optimizer.state_dict(), scheduler.state_dict()], file)
    file.seek(0)
    states = torch.load(file, weights_only=True)
    optimizer = hbp.optim.KFAC(again, None, **options)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    optimizer.load_state_dict(states[0])
    scheduler.load_state_dict(states[1])
    run(optimizer, scheduler, 4, X, y)
    for name, value in values(once).items():
        assert torch.equal(value, values(again)[name]), name


def test_what_the_quadratic_model_found_is_no_given_number():
    model, X, y = chain()
    free, given = hbp.optim.KFAC(model, None), hbp.optim.KFAC(model, None, lr=0.1, momentum=0.9)
    half = hbp.optim.KFAC(model, None, lr=0.2)
    for _ in range(3):
        free.step(X, y)
    found = {name: free.param_groups[0][name] for name in ("lr", "momentum")}
    given.load_state_dict(free.state_dict())
    half.load_state_dict(free.state_dict())
    numbers = [(optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["momentum"]) for optimizer in (given, half)]
    assert numbers == [(0.1, 0.9), (0.2, found["momentum"])]
    given.step(X, y)
    free.load_state_dict(given.state_dict())
    free.step(X, y)
    assert free.param_groups[0]["lr"] != 0.1


@slow("many steps")
def test_the_quadratic_model_of_a_model_that_draws():
    """Masks of its own in each step, the same in a step that is made again, and right in the mean."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 3)).double()
    X, y = torch.randn(8, 3).double(), torch.arange(8) % 3
    quadratic = QuadraticModel(model, nn.CrossEntropyLoss(), 0, Together(None))
    direction = {name: torch.randn_like(parameter) for name, parameter in model.named_parameters()}
    zeros = dict.fromkeys(direction, 0.0)

    def curvature(step):
        return quadratic.along((X, y), [direction], direction, zeros, zeros, step).curvature.item()

    found = torch.tensor([curvature(step) for step in range(400)])
    assert curvature(7) == found[7]
    assert len(set(found[:20].tolist())) == 20
    expected = torch.zeros(())
    for mask in torch.cartesian_prod(*[torch.tensor([0.0, 2.0]).double()] * 4):  # one unit's mask for all samples
        def output(parameters, mask=mask):
            hidden = nn.functional.linear(X, parameters["0.weight"], parameters["0.bias"]) * mask
            return nn.functional.linear(hidden, parameters["2.weight"], parameters["2.bias"])

        own = {name: parameter.detach() for name, parameter in model.named_parameters()}
        logits, tangent = torch.func.jvp(output, (own,), (direction,))
        p = logits.softmax(1)
        expected = expected + ((p * tangent.square()).sum(1) - (p * tangent).sum(1).square()).mean() / 16
    assert (found.mean() - expected).abs() < 4 * found.std() / 20


def test_layers_are_frozen_unfrozen_and_added():
    model, X, y = chain()
    model[0].requires_grad_(False)
    optimizer = hbp.optim.KFAC(model, None, model[2].parameters(), lr=0.2, damping=0.3, curvature="kflr")
    before = values(model)
    optimizer.step(X, y)
    assert torch.equal(model[0].weight, before["0.weight"])
    assert not torch.equal(model[2].weight, before["2.weight"])
    model[0].requires_grad_(True)
    optimizer.step(X, y)
    assert torch.equal(model[0].weight, before["0.weight"])
    optimizer.add_param_group({"params": list(model[0].parameters()), "lr": 0.1})
    optimizer.step(X, y)
    assert not torch.equal(model[0].weight, before["0.weight"])
    model[2].requires_grad_(False)
    before = values(model)
    optimizer.step(X, y)
    assert torch.equal(model[2].weight, before["2.weight"])
    assert not torch.equal(model[0].weight, before["0.weight"])


def test_ekfac_is_the_second_moments_in_the_bases_of_the_averaged_factors():
    """Bases at steps 0 and 2, moments averaged between, exact damping."""
    model, X, y = chain()
    optimizer = hbp.optim.EKFAC(model, None, lr=0.2, momentum=0.0, damping=0.3, curvature="ekfac_exact", ema=0.5,
                                update_every=1, invert_every=2)
    factors, moments, bases = [], [], None
    for step in range(4):
        before, own = values(model), gradient(model, mean_loss, X, y)
        factors.append(hbp.compile(model, mean_loss, ["kflr"], joint_bias=True)(X, y).kflr["0.weight"])
        if step % 2 == 0:
            weights = torch.tensor([0.5 ** (step - s) for s in range(step + 1)], dtype=torch.float64)
            A, B = (sum(w * pair[side] for w, pair in zip(weights, factors, strict=True)) / weights.sum()
                    for side in range(2))
            bases, moments = (torch.linalg.eigh(A).eigenvectors, torch.linalg.eigh(B).eigenvectors), []
        V = hbp.compile(model, mean_loss, ["sqrt_ggn"])(X, y).sqrt_ggn
        columns = torch.cat([V["0.weight"], V["0.bias"].unsqueeze(-1)], -1)
        moments.append((bases[1].T @ columns @ bases[0]).square().sum((0, 1)))
        mean = moments[0] if len(moments) == 1 else (0.5 * moments[0] + moments[1]) / 1.5
        joint = torch.cat([own["0.weight"], own["0.bias"].unsqueeze(1)], 1)
        optimizer.step(X, y)
        expected = -0.2 * bases[1] @ ((bases[1].T @ joint @ bases[0]) / (mean + 0.3)) @ bases[0].T
        close(model[0].weight.detach() - before["0.weight"], expected[:, :-1], f"step {step}", 1e-7)
        close(model[0].bias.detach() - before["0.bias"], expected[:, -1], f"step {step}, bias", 1e-7)


@slow("many steps")
def test_kfra_and_sampled_factors_go_down():
    for optimizer_of in (hbp.optim.KFRA, hbp.optim.KFAC, hbp.optim.EKFAC):
        model, X, _ = chain(samples=32)
        optimizer = optimizer_of(model, None, lr=0.2, damping=1e-2, update_every=1, invert_every=1)
        losses = [float(optimizer.step(X, (X[:, 0] > X[:, 1]).long())) for _ in range(10)]
        assert losses[-1] < 0.5 * losses[0], optimizer_of.__name__


def test_quadratic_minimum_ignores_directions_of_no_effect():
    quadratic = Quadratic(torch.diag(torch.tensor([2.0, 0.0])).double(), torch.zeros(2, 2).double(),
                          torch.tensor([-4.0, 0.0]).double())
    assert quadratic.minimum([None, None]).tolist() == [2.0, 0.0]
    assert quadratic.minimum([1.0, None]).tolist() == [1.0, 0.0]


def test_bad_input_is_one_error_and_leaves_the_parameters():
    model, X, y = chain()
    before = values(model)
    for wrong, words in (({"lr": -1.0, "ema": 2}, "ema must be a number"),
                         ({"lr": -1.0}, "lr must be a number, at least"),
                         ({"damping": 0}, "damping must be a number, above 0"),
                         ({"reject": 1}, "reject must be True or"),
                         ({"curvature": "x"}, "'x' is unknown"),
                         ({"curvature": "ekfac", "split": "pi"}, "which no factors share"),
                         ({"adapt_every": 0}, "adapt_every must be a whole"),
                         ({"damping": 0.01, "least_damping": 0.02}, "least_damping=0.02 is above its damping, 0.01"),
                         ({"damping": 0.2, "most_damping": 0.1}, "most_damping=0.1 is below its damping, 0.2"),
                         ({"lr": None, "norm_constraint": 1.0}, "norm_constraint is for a given lr")):
        with pytest.raises(hbp.CompileError, match=words):
            hbp.optim.KFAC(model, None, **wrong)
    with pytest.raises(hbp.CompileError, match="1 of its 1 parameters are not among the model's"):
        hbp.optim.KFAC(model, None, [nn.Parameter(torch.ones(2))])
    with pytest.raises(hbp.CompileError, match=r"'0\.\*' is a text, and parameters are meant, as model\[0\]"):
        hbp.optim.KFAC(model, None, ["0.*"])
    for optimizer, number in ((hbp.optim.KFAC, 0.1), (hbp.optim.Diagonal, "0.weight"), (hbp.optim.Newton, 1)):
        with pytest.raises(hbp.OptionTypeError, match=f"not {number!r}; None takes all. Numbers are given by name"):
            optimizer(model, None, number)
    with pytest.raises(hbp.CompileError, match="leave it out; groups of parameters are params="):
        hbp.optim.KFAC(model, None, groups=[{"params": [model[0].weight]}])
    with pytest.raises(hbp.CompileError, match=r"0\.weight is in another group already"):
        hbp.optim.KFAC(model, None, [{"params": [model[0].weight]}, {"params": [model[0].weight]}])
    with pytest.raises(hbp.CompileError, match=r"0\.weight is in it 2 times"):
        hbp.optim.KFAC(model, None, [model[0].weight, model[0].weight])
    with pytest.raises(hbp.CompileError, match="params is a set, whose order is another in each run"):
        hbp.optim.KFAC(model, None, [{"params": {*model.parameters()}}])
    with pytest.raises(hbp.CompileError, match="lr is None here and"):
        hbp.optim.KFAC(model, None, [{"params": [model[0].weight], "lr": None}], lr=0.1)
    optimizer = hbp.optim.KFAC(model, None, [model[0].weight, model[0].bias], least_damping=0.5)
    with pytest.raises(hbp.CompileError, match=r"least_damping=0\.5 is above its damping, 0\.1"):
        optimizer.add_param_group({"params": model[2].parameters(), "damping": 0.1})
    hbp.optim.KFAC(model, None, lr=0.1, damping=0.1, least_damping=0.5)  # nothing adapts
    optimizer = hbp.optim.KFAC(model, None)
    with pytest.raises(hbp.InputError, match="takes the batch"):
        optimizer.step()
    with pytest.raises(hbp.InputError, match="takes the batch"):
        optimizer.step(lambda: None)
    with pytest.raises(hbp.InputError, match="not the state of KFAC but of torch's own"):
        optimizer.load_state_dict(torch.optim.SGD(model.parameters()).state_dict())
    with pytest.raises(hbp.InputError, match="not the state of KFAC but of KFLR"):
        optimizer.load_state_dict(hbp.optim.KFLR(model, None).state_dict())
    with pytest.raises(hbp.InputError):
        optimizer.step(X, y[:3])
    assert all(torch.equal(value, before[name]) for name, value in values(model).items())
    assert optimizer.steps == 0


def test_warnings_are_of_the_line_that_takes_the_step():
    model, X, y = chain()
    model.register_parameter("unused", nn.Parameter(torch.ones(2).double()))
    with pytest.warns(hbp.UnusedParametersWarning) as warned:
        hbp.optim.KFAC(model, None, curvature="kflr").step(X, y)
    assert {each.filename for each in warned} == {__file__}

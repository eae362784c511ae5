"""The GGN of a group of parameters by brute force, and a spectrum beside it."""

import torch

from hbpcompiler.reference import Forward, jacobian


class Whole:
    """Blocks of the GGN over several parameters, the samples' own ones, and the samples' gradients."""

    def __init__(self, model, loss, inputs, y, seed=0):
        self.run = Forward(model, loss, inputs, y, seed)
        self.samples = self.run.batch
        self.c = 1 / self.samples if self.run.mean else 1.0

    def jacobian(self, names):
        """[N, outputs, D]"""
        rows = torch.cat([jacobian(self.run.output, self.run.parameters[name]) for name in names], 1)
        return rows.view(self.samples, -1, rows.shape[1])

    def each(self, names):
        """[N, D, D]: the GGN of each l_n."""
        rows = self.jacobian(names)
        outputs = rows.shape[1]
        blocks = self.run.curvature.view(self.samples, outputs, self.samples, outputs)
        return torch.stack([row.T @ blocks[n, :, n] @ row for n, row in enumerate(rows)]) / self.c

    def gradients(self, names):
        """[N, D]: of each l_n."""
        return torch.cat([self.run.batch_grad(name).unsqueeze(-1).flatten(1) for name in names], 1) / self.c


def by_group(spectrum, value):
    """What several groups give, also for the one group "all"."""
    return {"all": value} if list(spectrum.groups) == ["all"] else value


def flat(vectors, names):
    """{name: [k, *theta]} as [k, D]; parameters that do not influence the loss are not in it."""
    return torch.cat([vectors[name].unsqueeze(-1).flatten(1) for name in names], 1)


def near(found, expected, scale, what, limit=1e-8):
    error = float((found - expected).abs().max()) if found.numel() else 0.0
    assert found.shape == expected.shape, what
    assert error <= limit * float(scale), f"{what}: {error:.1e} of {float(scale):.1e}"


def check(spectrum, whole, damping=0.3, each=None):
    """All that a spectrum says, against brute force. `each`: the samples' GGNs of a group, if not the exact ones.

    What comes from eigenvectors of small eigenvalues is as exact as the square root of their share of the largest.
    """
    parts = {"vectors": spectrum.vectors(), "slopes": spectrum.slopes, "curvatures": spectrum.curvatures,
             "eigenvalues": spectrum.eigenvalues, "dropped": spectrum.dropped,
             "step": spectrum.newton_step(damping=damping)}
    parts = {name: by_group(spectrum, part) for name, part in parts.items()}
    for group, names in spectrum.groups.items():
        names = [name for name in names if name in spectrum.grad]
        shares = (whole.each if each is None else each)(names)
        gradients = whole.gradients(names)
        matrix, slope = whole.c * shares.sum(0), whole.c * gradients.sum(0)
        exact = torch.linalg.eigvalsh(matrix).flip(0)
        values, vectors = parts["eigenvalues"][group], flat(parts["vectors"][group], names)
        count, largest, size = len(values), exact.abs().max(), gradients.abs().max() + 1e-12
        near(values, exact[:count], largest, "eigenvalues", 1e-12)
        near(exact[count:], torch.zeros_like(exact[count:]), largest, "what was dropped", 1e-12)
        assert bool((values[:-1] >= values[1:]).all()), "falling"
        assert parts["dropped"][group] + count <= len(exact)
        unsafe = (largest / values[-1]).item() if count else 1.0
        near(vectors @ vectors.T, torch.eye(count, dtype=values.dtype), unsafe, "orthonormal", 1e-13)
        near(vectors @ matrix, values[:, None] * vectors, largest, "G e = lambda e", 1e-11)
        near(parts["slopes"][group], gradients @ vectors.T, size * unsafe**0.5, "slopes", 1e-11)
        near(parts["curvatures"][group], torch.einsum("kd,nde,ke->nk", vectors, shares, vectors), largest / whole.c,
             "curvatures", 1e-10)
        near(whole.c * parts["curvatures"][group].sum(0), values, largest, "curvatures add up to eigenvalues", 1e-11)
        near(whole.c * parts["slopes"][group].sum(0), vectors @ slope, size * unsafe**0.5, "slopes add up", 1e-11)
        span = vectors.T @ vectors
        damped = matrix + damping * torch.eye(len(matrix), dtype=matrix.dtype)
        step = torch.cat([parts["step"][group][name].flatten() for name in names])
        near(step, -torch.linalg.solve(damped, span @ slope), size * unsafe**0.5 / damping, "step", 1e-10)

"""Random numbers that belong to samples: what a generated file draws by where torch's generator would not do.

Where a data set is cut into batches, or spread over machines, torch's generator gives a sample other numbers with each
cutting. Here they follow from the sample's own key, the number of the draw in the program, and the place in the sample.
Random signs, which are drawn inside loops over samples, always do, so that they do not depend on the loops' turns.
"""

from __future__ import annotations

from typing import Optional

import torch
from torch import Tensor

from hbpcompiler.rule.idioms import idiom


@idiom
def bits_of_samples(keys: Tensor, number: int, count: int) -> Tensor:
    """[N, count], 64 random bits each: SplitMix64 (Steele, Lea, Flood 2014) from keys [N] and the draw's number."""
    counter = torch.arange(1, count + 1, device=keys.device) + number * 4294967296
    z = keys.unsqueeze(1) + counter * -7046029254386353131
    z = (z ^ ((z >> 30) & 17179869183)) * -4658895280553007687
    z = (z ^ ((z >> 27) & 137438953471)) * -7723592293110705685
    return z ^ ((z >> 31) & 8589934591)


@idiom
def signs_of_samples(keys: Tensor, number: int, shape: list[int], like: Tensor) -> Tensor:
    """[N, *shape] of -1 and 1 in the dtype of `like`, from keys [N]: the same for a sample whatever loop it is in."""
    lengths, count = [keys.shape[0]], 1
    for length in shape:
        lengths.append(length)
        count *= length
    places = torch.arange(8, device=keys.device)
    eights = (bits_of_samples(keys, number, (count + 63) // 64).unsqueeze(2) >> 8 * places) & 255
    ones = (eights.to(torch.uint8).unsqueeze(3) >> places.to(torch.uint8)) & 1
    signs = ones.flatten(1)[:, :count].to(like.dtype).mul_(2).sub_(1)
    return signs.reshape(lengths)


@idiom
def uniform_of_samples(keys: Tensor, number: int, axis: int, shape: list[int]) -> Tensor:
    """Numbers between 0 and 1, neither of them, in float64, from keys [N].

    `axis` of the shape is as long as the samples, or as the samples times their parts.
    """
    samples, each, lengths = keys.shape[0], 1, [keys.shape[0]]
    for place, length in enumerate(shape):
        lengths.append(length // samples if place == axis else length)
        each *= lengths[-1]
    z = bits_of_samples(keys, number, each)
    uniform = (((z >> 12) & 4503599627370495).double() + 0.5) / 4503599627370496.0
    return uniform.reshape(lengths).movedim(0, axis).reshape(shape)


@idiom
def steps_of_samples(keys: Tensor, number: int, axis: int, shape: list[int], steps: float, low: float = 0.0,
                     high: float = 1.0) -> Tensor:
    """Numbers from 0 to below 1, in float64, of which a narrower dtype rounds none where it has so many there; from
    low to high of these."""
    return low + (high - low) * ((uniform_of_samples(keys, number, axis, shape) * steps).floor() / steps)


@idiom
def steps_like_samples(keys: Tensor, number: int, axis: int, like: Tensor, steps: float, low: float = 0.0,
                       high: float = 1.0) -> Tensor:
    """The same, in the shape and dtype of a tensor."""
    return steps_of_samples(keys, number, axis, list(like.shape), steps, low, high).to(like.dtype)


@idiom
def exponential_of_samples(keys: Tensor, number: int, axis: int, like: Tensor, rate: float = 1.0) -> Tensor:
    """Exponential numbers of a rate, in the shape and dtype of a tensor."""
    return (-uniform_of_samples(keys, number, axis, list(like.shape)).log() / rate).to(like.dtype)


@idiom
def normals_of_samples(keys: Tensor, number: int, axis: int, shape: list[int], mean: float = 0.0,
                       deviation: float = 1.0) -> Tensor:
    """Normal numbers, in float64."""
    uniform = uniform_of_samples(keys, number, axis, shape)
    return mean + deviation * (torch.erfinv(2 * uniform - 1) * 1.4142135623730951)


@idiom
def normal_of_samples(keys: Tensor, number: int, axis: int, like: Tensor, mean: float = 0.0,
                      deviation: float = 1.0) -> Tensor:
    """The same, in the shape and dtype of a tensor."""
    return normals_of_samples(keys, number, axis, list(like.shape), mean, deviation).to(like.dtype)


@idiom
def normal_around_samples(keys: Tensor, number: int, axis: int, mean: Tensor, deviation: Tensor) -> Tensor:
    """Normal numbers of the means and deviations that two tensors have."""
    around = mean + 0 * deviation
    return (around + deviation * normals_of_samples(keys, number, axis, list(around.shape))).to(around.dtype)


@idiom
def labels_of_samples(keys: Tensor, number: int, axis: int, rows: Tensor, draws: int) -> Tensor:
    """Labels [R, draws] by probabilities [R, C]."""
    heads = rows.double().cumsum(1)
    uniform = uniform_of_samples(keys, number, axis, [rows.shape[0], draws])
    found = torch.searchsorted(heads, uniform * heads[:, -1:], right=True)
    return found.clamp(max=rows.shape[1] - 1)


@idiom
def bernoulli_of_samples(keys: Tensor, number: int, axis: int, like: Tensor, p: Optional[float] = None) -> Tensor:  # noqa: UP045
    """1 with the probabilities of a tensor, or with one probability in its shape, otherwise 0."""
    uniform = uniform_of_samples(keys, number, axis, list(like.shape))
    return (uniform < (like if p is None else torch.full_like(like, p))).to(like.dtype)


@idiom
def dropout_of_samples(keys: Tensor, number: int, axis: int, x: Tensor, p: float) -> Tensor:
    """x with each number kept with probability 1 - p, over 1 - p."""
    if p == 1:
        return x * 0
    return x * (uniform_of_samples(keys, number, axis, list(x.shape)) >= p).to(x.dtype) / (1 - p)


@idiom
def poisson_of_samples(keys: Tensor, number: int, axis: int, rate: Tensor) -> Tensor:
    """Poisson numbers: the smallest whose distribution function, a gamma function, reaches a uniform number."""
    uniform = uniform_of_samples(keys, number, axis, list(rate.shape))
    mean = rate.double()
    low, high = torch.zeros_like(mean), (mean + 12 * mean.sqrt() + 40).ceil()
    while bool((low < high).any()):
        middle = ((low + high) / 2).floor()
        reached = torch.special.gammaincc(middle + 1, mean) >= uniform
        low, high = torch.where(reached, low, middle + 1), torch.where(reached, middle, high)
    return low.to(rate.dtype)


@idiom
def integers_of_samples(keys: Tensor, number: int, axis: int, low: int, high: int, shape: list[int]) -> Tensor:
    """Whole numbers from `low` to below `high`, int64."""
    uniform = uniform_of_samples(keys, number, axis, shape)
    return (low + (uniform * (high - low)).floor()).long()

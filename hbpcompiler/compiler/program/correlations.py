"""A helper of generated files: products of an image's pixels with pixels so far away, of which A of windows is made."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hbpcompiler.compiler.program.products import onednn_linear
from hbpcompiler.rule.idioms import idiom


@idiom
def seen_alike(length: int, places: int, dilation: int, before: int, positions: int) -> list[tuple[int, int]]:
    """An axis cut into [first, last), within which each place of a window sees all pixels or none."""
    cuts = [0, length]
    for place in range(places):
        first = place * dilation - before
        for cut in [min(max(first, 0), length), min(max(first + positions, 0), length)]:
            if cut not in cuts:
                cuts.append(cut)
    cuts = sorted(cuts)
    return [(cuts[i], cuts[i + 1]) for i in range(len(cuts) - 1)]


@idiom
def products_of_pixels(x: Tensor, y: Tensor, distances: list[int], dilation: list[int]) -> Tensor:
    """sum over n and pixels q of x[n, i, q] y[n, j, q + dilation d]: [i, j, *distances], d from 0 on along both axes.

    As the gradient of a convolution's weight; of few pixels as one product, since the kernel takes long to give back
    its weights. Some samples, or some rows of one, at a time: the kernel adds up in float32 one by one, and copies
    should stay in cache.
    """
    height, width = x.shape[2], x.shape[3]
    by_kernel = min(height, width) > 1 and x.shape[0] * height * width > 2 * x.shape[1]
    pixels = 16384 if by_kernel else 2048
    samples, lines = max(1, pixels // (height * width)), min(height, max(1, pixels // width))
    weight = x.new_empty(1).expand(x.shape[1], y.shape[1], distances[0], distances[1])
    total = torch.zeros_like(weight, memory_format=torch.contiguous_format)
    for first in range(0, x.shape[0], samples):
        for top in range(0, height, lines):
            own = x[first : first + samples, :, top : top + lines]
            bottom = top + own.shape[2] + (distances[0] - 1) * dilation[0]
            others = y[first : first + samples, :, top:bottom]
            if by_kernel:
                _, products, _ = torch.ops.aten.convolution_backward(
                    own, others, weight, None, [1, 1], [0, 0], dilation, False, [0, 0], 1, [False, True, False])
                total.add_(products)
            else:
                apart = others.unfold(2, own.shape[2], dilation[0]).unfold(3, width, dilation[1])
                rows = apart.permute(1, 2, 3, 0, 4, 5).flatten(3).flatten(0, 2)  # [(j *distances), (n h w)]
                total.add_(onednn_linear(own.transpose(0, 1).flatten(1), rows).view(total.shape))
    return total


@idiom
def windows_gram(x: Tensor, size: list[int], dilation: list[int], before: list[int], positions: list[int]) -> Tensor:
    """sum over n and positions of u u^T, u what a window sees: [N, C, h, w] -> [C * size, C * size].

    At places a and b of a window are pixels b - a apart: all products of pixels so far apart are made once. Those at
    the edges are apart, as not all places of a window reach them. `before`: rows and columns of zeros.
    """
    channels, height, width = x.shape[1], x.shape[2], x.shape[3]
    tall, wide = size[0], size[1]
    total = x.new_zeros((channels, tall, wide, channels, tall, wide))
    for top, bottom in seen_alike(height, tall, dilation[0], before[0], positions[0]):
        for left, right in seen_alike(width, wide, dilation[1], before[1], positions[1]):
            down = min(tall - 1, (height - 1 - top) // dilation[0])  # so many places below there are pixels, and
            back, on = min(wide - 1, (right - 1) // dilation[1]), min(wide - 1, (width - 1 - left) // dilation[1])
            around = F.pad(x, [back * dilation[1] - left, right + on * dilation[1] - width,
                               -top, bottom + down * dilation[0] - height])
            products = products_of_pixels(x[:, :, top:bottom, left:right], around, [down + 1, back + on + 1], dilation)
            for a in range(tall):
                first, below = a * dilation[0] - before[0], min(down, tall - 1 - a) + 1
                for b in range(wide):
                    start, nearest, last = b * dilation[1] - before[1], max(b - back, 0), min(b + on, wide - 1) + 1
                    if (first <= top and bottom <= first + positions[0]
                            and start <= left and right <= start + positions[1]):
                        total[:, a, b, :, a : a + below, nearest:last].add_(
                            products[:, :, :below, nearest - b + back : last - b + back])
    for a in range(tall):
        for b in range(a + 1, tall):
            total[:, b, :, :, a].copy_(total[:, a, :, :, b].permute(2, 3, 0, 1))
    return total.view(channels * tall * wide, channels * tall * wide)

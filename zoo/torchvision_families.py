"""torchvision: classification, segmentation and video models."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .family import CLASSES, SAMPLES, Case, Family, images, labels

PIXELS = {
    "alexnet": 96, "vgg11": 32, "vgg11_bn": 32, "resnet18": 48, "resnet50": 48, "resnext50_32x4d": 48,
    "wide_resnet50_2": 48, "densenet121": 48, "googlenet": 64, "inception_v3": 96, "squeezenet1_1": 48,
    "mobilenet_v2": 48, "mobilenet_v3_small": 48, "shufflenet_v2_x0_5": 48, "mnasnet0_5": 48, "efficientnet_b0": 48,
    "efficientnet_v2_s": 48, "regnet_x_400mf": 48, "regnet_y_400mf": 48, "convnext_tiny": 48, "swin_t": 64,
    "swin_v2_t": 64, "maxvit_t": 224,
}
"""Family -> the image's side: small, but large enough for every layer."""
VIDEO = ["r3d_18", "mc3_18", "r2plus1d_18", "s3d", "mvit_v2_s", "swin3d_t"]
SEGMENTATION = ["fcn_resnet50", "deeplabv3_mobilenet_v3_large", "lraspp_mobilenet_v3_large"]


def classification(name: str, pixels: int, **options: Any) -> Case:
    import torchvision

    if name in ("googlenet", "inception_v3"):
        options["init_weights"] = True
    model = torchvision.models.get_model(name, weights=None, num_classes=CLASSES, **options)
    return Case(model, nn.CrossEntropyLoss(), images(pixels), labels())


def video(name: str) -> Case:
    import torchvision

    frames, pixels = 16, 224 if name in ("mvit_v2_s", "s3d") else 64
    model = torchvision.models.get_model(name, weights=None, num_classes=CLASSES)
    return Case(model, nn.CrossEntropyLoss(), images(pixels, frames=frames), labels())


def of_pixels(output: Any, target: Tensor) -> Tensor:
    return nn.functional.cross_entropy(output["out"], target)


def segmentation(name: str) -> Case:
    import torchvision

    model = torchvision.models.get_model(name, weights=None, weights_backbone=None, num_classes=CLASSES)
    return Case(model, of_pixels, images(32), torch.randint(CLASSES, (SAMPLES, 32, 32)))


def families() -> list[Family]:
    found = [Family("torchvision", name, partial(classification, name, pixels), partial(classification, name, 32))
             for name, pixels in PIXELS.items()]
    small_vits = [partial(classification, "vit_b_16", pixels, image_size=pixels) for pixels in (64, 32)]
    found.append(Family("torchvision", "vit_b_16", *small_vits))
    found += [Family("torchvision", name, partial(video, name)) for name in VIDEO]
    found += [Family("torchvision", name, partial(segmentation, name)) for name in SEGMENTATION]
    return found

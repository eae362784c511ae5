"""timm: the smallest model of each of its modules; modules with several hundred million parameters are left out."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn

from .family import CLASSES, Case, Family, images, labels

ANY_SIZE = """
    test_byobnet convmixer_768_32 test_convnext cpubone_nano csatv2 cs3darknet_focus_s cspnext_tiny davit_tiny
    densenet121 dla46x_c dpn48b edgenext_xx_small test_efficientnet efficientvim_m1 efficientvit_b0 fasternet_s
    fastvit_t8 focalnet_tiny_srf ghostnet_050 hardcorenas_b hgnetv2_b0 hrnet_w18_small iformer_t
    inception_next_atto lcnetv2_small lowformer_b0 test_mambaout caformer_s18 lcnet_035 mobilevit_xxs
    nextvit_small test_nfnet pvt_v2_b0 rdnet_tiny regnetx_002 repghostnet_050 repvit_m0_9 res2net50_26w_4s
    resnest26d test_resnet resnetv2_18 rexnet_100 selecsls42 legacy_seresnet18 shvit_s1 skresnet18 starnet_s050
    tiny_vit_5m_224 tresnet_m vgg11 ese_vovnet19b_slim_dw legacy_xception xception41p
"""
"""Take images of 64 pixels as they are."""
RESIZED = """
    eca_botnext26ts_256 cait_xxs24_224 coat_tiny convit_tiny deit_tiny_patch16_224 efficientformerv2_s0
    efficientvit_m0 eva02_tiny_patch14_224 gcvit_xxtiny hiera_tiny_224 levit_512_s8 test_coatnet gmixer_12_224
    mvitv2_tiny nest_tiny pit_xs_224 sequencer2d_s swiftformer_xs swin_tiny_patch4_window7_224
    swinv2_tiny_window8_256 swinv2_cr_tiny_224 tnt_s_legacy_patch16_224 twins_svt_small visformer_tiny test_vit
    vit_tiny_r_s16_p8_224 test_vit_relpos vitamin_small_224 volo_d1_224 xcit_nano_12_p8_224
"""
"""Made for images of 64 pixels instead of their own: positions and windows are resampled."""
OWN_SIZE = {"crossvit_tiny_240": 240, "efficientformer_l1": 224, "inception_resnet_v2": 96, "inception_v3": 96,
            "inception_v4": 96}
"""Need larger images."""


def classification(name: str, pixels: int, **options: Any) -> Case:
    import timm

    model = timm.create_model(name, num_classes=CLASSES, **options)
    return Case(model, nn.CrossEntropyLoss(), images(pixels), labels())


def families() -> list[Family]:
    found = [Family("timm", name, partial(classification, name, 64), partial(classification, name, 32))
             for name in ANY_SIZE.split()]
    found += [Family("timm", name, partial(classification, name, 64, img_size=64),
                     partial(classification, name, 32, img_size=32)) for name in RESIZED.split()]
    found += [Family("timm", name, partial(classification, name, pixels)) for name, pixels in OWN_SIZE.items()]
    return found

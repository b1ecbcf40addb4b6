"""Rows of convolutions and pooling of one to three dimensions, and of normalisations of each sample."""

from __future__ import annotations

import numpy as np
import torch

from dtrain import nn
from dtrain.graph.ops import pooling
from tests.ops_samples import real, row

F = torch.nn.functional
IMAGES = real("images", 2, 4, 5, 6)

row("conv1d", lambda x, w: nn.conv(x, w, 2, 1), lambda x, w: F.conv1d(x, w, None, 2, 1), real("signal", 2, 3, 7),
    real("w1", 2, 3, 3))  # fmt: skip
row("conv2d", lambda x, w: nn.conv(x, w, padding=1), lambda x, w: F.conv2d(x, w, None, 1, 1), IMAGES,
    real("w2", 3, 4, 3, 3))  # fmt: skip
row("conv2d of groups", lambda x, w: nn.conv(x, w, (2, 1), (1, 2), (1, 2), groups=2),
    lambda x, w: F.conv2d(x, w, None, (2, 1), (1, 2), (1, 2), 2), IMAGES, real("wg", 4, 2, 3, 2))  # fmt: skip
row("conv3d", lambda x, w: nn.conv(x, w, 2, 1), lambda x, w: F.conv3d(x, w, None, 2, 1), real("volume", 1, 2, 3, 4, 3),
    real("w3", 2, 2, 2, 2, 3))  # fmt: skip
row("conv of no samples", lambda x, w: nn.conv(x, w), lambda x, w: F.conv2d(x, w), IMAGES[:0], real("we", 2, 4, 2, 2))
row("conv_transpose", lambda x, w: nn.conv_transpose(x, w, 2, 1, 1, 2),
    lambda x, w: F.conv_transpose2d(x, w, None, 2, 1, 1, 2), IMAGES, real("wt", 4, 2, 3, 3))  # fmt: skip

_VOLUME = real("pooled", 1, 2, 4, 5, 3)
row("max_pool", lambda x: nn.max_pool(x, 2), lambda x: F.max_pool2d(x, 2), IMAGES)
row("max_pool, overlapping", lambda x: nn.max_pool(x, 3, 2, 1), lambda x: F.max_pool2d(x, 3, 2, 1), IMAGES)
row("max_pool1d", lambda x: nn.max_pool(x, 3, 1), lambda x: F.max_pool1d(x, 3, 1), real("long", 2, 2, 11))
row("max_pool3d", lambda x: nn.max_pool(x, (2, 3, 1), 2, (1, 1, 0)),
    lambda x: F.max_pool3d(x, (2, 3, 1), 2, (1, 1, 0)), _VOLUME)  # fmt: skip
row("max_pool, dilated", lambda x: nn.max_pool(x, 2, 2, 1, dilation=2, ceil_mode=True),
    lambda x: F.max_pool2d(x, 2, 2, 1, 2, ceil_mode=True), IMAGES)  # fmt: skip
row("avg_pool, ceil_mode", lambda x: nn.avg_pool(x, 3, 2, 1, ceil_mode=True),
    lambda x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True), IMAGES)  # fmt: skip
row("max_pool twice", lambda x: nn.max_pool(x, 2, 1) ** 2 * nn.max_pool(x, 2, 1),
    lambda x: F.max_pool2d(x, 2, 1) ** 3, IMAGES, orders=3)  # fmt: skip
_HALVES = {"kernel": (2, 2), "stride": (2, 2), "padding": ((0, 0),) * 2, "dilation": (1, 1)}
row("what max_pool takes", lambda h, x: pooling.max_pool_taken(h, x, nn.max_pool(x, 2), **_HALVES) ** 2,
    lambda h, x: torch.gather(
        h.flatten(2), 2, F.max_pool2d(x, 2, return_indices=True)[1].flatten(2)).reshape(2, 4, 2, 3) ** 2,
    real("taken", 2, 4, 5, 6), IMAGES)  # fmt: skip
row("max_pool with ties", lambda x: nn.max_pool(x, 2) ** 3,
    lambda x: torch.amax(x.reshape(1, 1, 2, 2, 3, 2), (3, 5)) ** 3, np.kron(real("ties", 1, 1, 2, 3), np.ones((2, 2))),
    orders=0)  # fmt: skip
row("avg_pool", lambda x: nn.avg_pool(x, 2), lambda x: F.avg_pool2d(x, 2), IMAGES)
row("avg_pool, overlapping", lambda x: nn.avg_pool(x, 3, (2, 1), 1) ** 3, lambda x: F.avg_pool2d(x, 3, (2, 1), 1) ** 3,
    IMAGES)  # fmt: skip
row("avg_pool1d", lambda x: nn.avg_pool(x, 3, 1, 1), lambda x: F.avg_pool1d(x, 3, 1, 1), real("long", 2, 2, 11))
row("avg_pool3d without padding's count", lambda x: nn.avg_pool(x, 2, 1, 1, count_include_pad=False),
    lambda x: F.avg_pool3d(x, 2, 1, 1, count_include_pad=False), _VOLUME)  # fmt: skip
row("pool of no samples", lambda x: nn.max_pool(x, 2) + nn.avg_pool(x, 2),
    lambda x: F.max_pool2d(x, 2) + F.avg_pool2d(x, 2), IMAGES[:0])  # fmt: skip

_C, _D = real("scales", 4), real("shifts", 4)
row("layer_norm", lambda x, g, b: nn.layer_norm(x, g, b), lambda x, g, b: F.layer_norm(x, (5, 6), g, b), IMAGES,
    real("lg", 5, 6), real("lb", 5, 6))  # fmt: skip
row("group_norm", lambda x, g, b: nn.group_norm(x, 2, g, b), lambda x, g, b: F.group_norm(x, 2, g, b), IMAGES, _C, _D)
row("instance_norm", lambda x, g, b: nn.instance_norm(x, g, b),
    lambda x, g, b: F.instance_norm(x, weight=g, bias=b), IMAGES, _C, _D)  # fmt: skip
row("local_response_norm", lambda x: nn.local_response_norm(x, 3, 0.2, divide_by_size=True),
    lambda x: F.local_response_norm(x, 3, 0.2, k=2.0), IMAGES)  # fmt: skip
row("local_response_norm of an even size", lambda x: nn.local_response_norm(x, 4, 0.1, 0.5, 1.0),
    lambda x: F.local_response_norm(x[..., None], 4, 0.4, 0.5)[..., 0], real("features", 2, 7))  # fmt: skip

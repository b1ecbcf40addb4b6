"""Rows of convolutions of one to three dimensions and of transposed ones."""

from __future__ import annotations

import torch

from dtrain import nn
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

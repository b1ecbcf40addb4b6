"""What models of images have in common."""

from __future__ import annotations

import math

from dtrain.errors import InputError


def side_of(model: str, features: int, channels: int) -> int:
    """The side of square images of so many numbers; ``InputError`` naming the model if they are not square."""
    side = math.isqrt(features // channels)
    if side * side * channels != features:
        raise InputError(
            f"model {model}: expected square images of {channels} channel{'s' * (channels > 1)}, got "
            f"{features} numbers a sample; set model.channels, or choose another model"
        )
    return side

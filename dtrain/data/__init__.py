"""Data: what a job trains on, where it comes from, and which samples make up a shard.

The order of samples and the content of generated sources are functions of seeds alone, never of a worker.
"""

from dtrain.data.catalog import SOURCES, make_source
from dtrain.data.sampler import Sampler, gather, permutation, position, shard_bounds
from dtrain.data.source import Source, from_arrays

__all__ = [
    "SOURCES",
    "Sampler",
    "Source",
    "from_arrays",
    "gather",
    "make_source",
    "permutation",
    "position",
    "shard_bounds",
]

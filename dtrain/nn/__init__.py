"""Layers, losses, initialisers and the models that ship, all written in plain NumPy.

Owns no engine and no state: every function takes arrays, traced or plain, and returns arrays. Invariant: each
sample's result depends on that sample and the parameters alone, so that a batch may be cut into shards anywhere. There
are two exceptions in training: dropout also depends on the step and the shard, through the step's context, and
batch_norm on the other samples of the shard.
"""

from dtrain.nn.convolution import conv, conv_transpose
from dtrain.nn.layers import dropout, linear, relu, sigmoid, tanh
from dtrain.nn.losses import (
    LOSSES,
    accuracy,
    check_labels,
    mean_squared_error,
    multiclass_hinge,
    softmax_cross_entropy,
    squared_hinge,
)
from dtrain.nn.models import MODELS, Model, make_model
from dtrain.nn.normalisation import batch_norm, group_norm, instance_norm, layer_norm, local_response_norm
from dtrain.nn.pooling import avg_pool, max_pool
from dtrain.nn.running import report, running
from dtrain.nn.supervised import Supervised, supervise

__all__ = [
    "LOSSES",
    "MODELS",
    "Model",
    "Supervised",
    "accuracy",
    "avg_pool",
    "batch_norm",
    "check_labels",
    "conv",
    "conv_transpose",
    "dropout",
    "group_norm",
    "instance_norm",
    "layer_norm",
    "linear",
    "local_response_norm",
    "make_model",
    "max_pool",
    "mean_squared_error",
    "multiclass_hinge",
    "relu",
    "report",
    "running",
    "sigmoid",
    "softmax_cross_entropy",
    "squared_hinge",
    "supervise",
    "tanh",
]

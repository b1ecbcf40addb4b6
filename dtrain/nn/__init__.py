"""Layers, losses, initialisers and the models that ship, all written in plain NumPy.

Owns no engine and no state: every function takes arrays, traced or plain, and returns arrays. Invariant: each
sample's result depends on that sample and the parameters alone, so that a batch may be cut into shards anywhere. There
are three exceptions in training: dropout also depends on the step and the shard, through the step's context, batch_norm
on the other samples of the shard, and what uses sum_over_shards on those of the whole mini-batch.
"""

from dtrain.graph.ops.shards import sum_over_shards
from dtrain.nn.activations import (
    elu,
    gelu,
    gelu_tanh,
    hard_sigmoid,
    hard_tanh,
    leaky_relu,
    relu6,
    selu,
    silu,
    softplus,
)
from dtrain.nn.attention import (
    attention,
    causal_mask,
    embedding,
    join_heads,
    multi_head_attention,
    split_heads,
)
from dtrain.nn.convolution import conv, conv_transpose
from dtrain.nn.layers import dropout, linear, relu, sigmoid, tanh
from dtrain.nn.losses import (
    LOSSES,
    accuracy,
    binary_cross_entropy,
    binary_hinge,
    binary_squared_hinge,
    check_labels,
    crammer_singer,
    huber,
    kl_divergence,
    mean_absolute_error,
    mean_squared_error,
    multiclass_hinge,
    negative_log_likelihood,
    softmax_cross_entropy,
    squared_hinge,
)
from dtrain.nn.models import MODELS, Model, make_model
from dtrain.nn.normalisation import batch_norm, group_norm, instance_norm, layer_norm, local_response_norm
from dtrain.nn.pooling import avg_pool, max_pool
from dtrain.nn.recurrent import gru, gru_cell, lstm, lstm_cell, rnn_cell
from dtrain.nn.running import report, running
from dtrain.nn.sequences import SequenceTask
from dtrain.nn.supervised import Supervised, supervise
from dtrain.nn.table import table

__all__ = [
    "LOSSES",
    "MODELS",
    "Model",
    "SequenceTask",
    "Supervised",
    "accuracy",
    "attention",
    "avg_pool",
    "batch_norm",
    "binary_cross_entropy",
    "binary_hinge",
    "binary_squared_hinge",
    "causal_mask",
    "check_labels",
    "conv",
    "conv_transpose",
    "crammer_singer",
    "dropout",
    "elu",
    "embedding",
    "gelu",
    "gelu_tanh",
    "group_norm",
    "gru",
    "gru_cell",
    "hard_sigmoid",
    "hard_tanh",
    "huber",
    "instance_norm",
    "join_heads",
    "kl_divergence",
    "layer_norm",
    "leaky_relu",
    "linear",
    "local_response_norm",
    "lstm",
    "lstm_cell",
    "make_model",
    "max_pool",
    "mean_absolute_error",
    "mean_squared_error",
    "multi_head_attention",
    "multiclass_hinge",
    "negative_log_likelihood",
    "relu",
    "relu6",
    "report",
    "rnn_cell",
    "running",
    "selu",
    "sigmoid",
    "silu",
    "softmax_cross_entropy",
    "softplus",
    "split_heads",
    "squared_hinge",
    "sum_over_shards",
    "supervise",
    "table",
    "tanh",
]

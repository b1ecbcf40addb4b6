"""The engine: trace a NumPy function, differentiate it, plan it, run it, check it.

A traced function is a `Graph` of `Tensor` nodes (`tensor.py`); what a node computes and its derivative is a
`Primitive` (`primitive.py`, `ops/`); which NumPy function records what is a table (`numpy_functions.py`); `backward`
adds the reverse sweep to the same graph; `Plan` makes a flat list of calls of it. This package knows nothing of
workers or of training.
"""

import dtrain.graph.numpy_functions  # noqa: F401  (fills the tables of dispatch)
from dtrain.graph.api import grad, trace, value_and_grad, vjp
from dtrain.graph.check import CheckReport, GradientCheckError, check_grads
from dtrain.graph.context import (
    StepContext,
    current_context,
    dropout,
    is_training,
    keep_mask,
    random_words,
    step_context,
    step_key,
)
from dtrain.graph.custom import custom_vjp, primitive
from dtrain.graph.differentiate import backward
from dtrain.graph.drawing import draw
from dtrain.graph.inspection import inspect
from dtrain.graph.ops.choice import relu, sigmoid
from dtrain.graph.ops.normal import normal_cdf
from dtrain.graph.ops.reduction import log_softmax, logsumexp, softmax
from dtrain.graph.ops.shape import stop_gradient
from dtrain.graph.ops.shards import sum_over_shards
from dtrain.graph.plan import Arena, Bound, Plan
from dtrain.graph.primitive import PRIMITIVES, Primitive
from dtrain.graph.recompute import checkpoint
from dtrain.graph.scanning import scan
from dtrain.graph.tensor import Graph, Tensor, scope
from dtrain.graph.transformations import elementwise_grad, hessian, hvp, jacobian, jvp
from dtrain.graph.tree import flatten, map_leaves, named_leaves, unflatten

__all__ = [
    "PRIMITIVES",
    "Arena",
    "Bound",
    "CheckReport",
    "GradientCheckError",
    "Graph",
    "Plan",
    "Primitive",
    "StepContext",
    "Tensor",
    "backward",
    "check_grads",
    "checkpoint",
    "current_context",
    "custom_vjp",
    "draw",
    "dropout",
    "elementwise_grad",
    "flatten",
    "grad",
    "hessian",
    "hvp",
    "inspect",
    "is_training",
    "jacobian",
    "jvp",
    "keep_mask",
    "log_softmax",
    "logsumexp",
    "map_leaves",
    "named_leaves",
    "normal_cdf",
    "primitive",
    "random_words",
    "relu",
    "scan",
    "scope",
    "sigmoid",
    "softmax",
    "step_context",
    "step_key",
    "stop_gradient",
    "sum_over_shards",
    "trace",
    "unflatten",
    "value_and_grad",
    "vjp",
]

"""Update rules, learning-rate schedules and clipping: pure functions over flat slices.

Owns the arithmetic of an update, not the choreography: who holds which slice, when it is updated and what is
committed is the business of ``train`` and ``comm``. Invariant: a rule is elementwise, so that the flat buffer may be
cut anywhere and walked by any number of ranks with the same bits.
"""

from dtrain.optim.adadelta import Adadelta
from dtrain.optim.adagrad import Adagrad
from dtrain.optim.adam import Adam, AdamW
from dtrain.optim.clipping import clip_by_value, scale
from dtrain.optim.rmsprop import RMSProp
from dtrain.optim.rule import Rule
from dtrain.optim.rules import RULES, make_rule
from dtrain.optim.schedules import SCHEDULES, Constant, Cosine, Schedule, Step, WarmUp, make_schedule
from dtrain.optim.sgd import SGD

__all__ = [
    "RULES",
    "SCHEDULES",
    "SGD",
    "Adadelta",
    "Adagrad",
    "Adam",
    "AdamW",
    "Constant",
    "Cosine",
    "RMSProp",
    "Rule",
    "Schedule",
    "Step",
    "WarmUp",
    "clip_by_value",
    "make_rule",
    "make_schedule",
    "scale",
]

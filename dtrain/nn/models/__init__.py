"""The models that ship, by the name that a job spec gives them."""

from __future__ import annotations

from typing import Any

from dtrain.nn.models.alexnet import AlexNet
from dtrain.nn.models.convnet import ConvNet
from dtrain.nn.models.deep_lstm import DeepLSTM
from dtrain.nn.models.dlrm import DLRM
from dtrain.nn.models.lstm import LSTM
from dtrain.nn.models.mlp import MLP
from dtrain.nn.models.model import Model
from dtrain.nn.models.ntm import NTM
from dtrain.nn.models.softmax import Softmax
from dtrain.nn.models.svm import SVM
from dtrain.nn.models.transformer import Transformer
from dtrain.options import build, unknown_name

__all__ = [
    "DLRM",
    "LSTM",
    "MLP",
    "MODELS",
    "NTM",
    "SVM",
    "AlexNet",
    "ConvNet",
    "DeepLSTM",
    "Model",
    "Softmax",
    "Transformer",
    "make_model",
]

MODELS: dict[str, type[Model]] = {
    "softmax": Softmax,
    "svm": SVM,
    "mlp": MLP,
    "convnet": ConvNet,
    "alexnet": AlexNet,
    "transformer": Transformer,
    "lstm": LSTM,
    "dlrm": DLRM,
    "deep-lstm": DeepLSTM,
    "ntm": NTM,
}


def make_model(name: str, **options: Any) -> Model:
    """The model of that name; ``InputError`` for a name, an option or a value that does not exist or fit."""
    if name not in MODELS:
        raise unknown_name("model.name", "model", name, MODELS)
    return build(MODELS[name], name, options)

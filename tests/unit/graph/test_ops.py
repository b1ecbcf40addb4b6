"""Every row of the table: values against NumPy, gradients against PyTorch and against the project's own check."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dtrain import graph
from dtrain.graph.operators import ACCUMULATIONS, FUNCTIONS, REDUCTIONS, UFUNCS
from tests.ops_table import SAMPLES

every_row = pytest.mark.parametrize("sample", SAMPLES, ids=lambda s: s.name)
IN_PYTORCH = [s for s in SAMPLES if s.torch is not None]
CHECKED = [s for s in SAMPLES if s.orders > 0]  # the others lie on a kink, or are constant


def traced(sample, inputs=None):
    inputs = sample.inputs if inputs is None else inputs
    recorded = graph.trace(sample.function, *inputs)
    seeds = [np.cos(np.arange(o.size, dtype=o.dtype).reshape(o.shape)) for o in recorded.outputs]
    gradients = graph.backward(recorded.outputs, seeds, recorded.inputs)
    return recorded, seeds, gradients


@every_row
def test_the_value_is_numpys_eager_and_planned(sample):
    expected = np.asarray(sample.function(*sample.inputs))
    recorded, _, _ = traced(sample)
    (out,) = recorded.outputs
    np.testing.assert_allclose(np.asarray(out.value), expected, rtol=1e-14, atol=1e-15)
    bound = graph.Plan(recorded.inputs, recorded.outputs).bind([np.array(a, order="C") for a in sample.inputs])
    bound.run()
    bound.run()  # a second run finds nothing of the first
    np.testing.assert_allclose(bound.outputs[0], np.asarray(out.value), rtol=1e-14, atol=1e-15)
    assert bound.outputs[0].shape == expected.shape
    assert bound.outputs[0].dtype == expected.dtype


def test_every_row_has_an_oracle_for_its_gradient():
    """PyTorch, the project's own check or both; one row has none: at its jump the derivative is 0 by convention."""
    without = {s.name for s in SAMPLES} - {s.name for s in IN_PYTORCH} - {s.name for s in CHECKED}
    assert without == {"heaviside at 0"}


@pytest.mark.parametrize("sample", IN_PYTORCH, ids=lambda s: s.name)
def test_the_gradient_is_pytorchs(sample):
    recorded, seeds, gradients = traced(sample)
    leaves = [torch.tensor(a, requires_grad=True) for a in sample.inputs]
    out = sample.torch(*leaves)
    found = torch.autograd.grad(out, leaves, torch.tensor(np.asarray(seeds[0])), allow_unused=True)
    bound = graph.Plan(recorded.inputs, gradients).bind([np.array(a, order="C") for a in sample.inputs])
    bound.run()
    for ours, planned, theirs, x in zip(gradients, bound.outputs, found, sample.inputs, strict=True):
        theirs = np.zeros_like(x) if theirs is None else theirs.resolve_neg().numpy()
        scale = max(1.0, float(np.abs(theirs).max(initial=0.0)))
        np.testing.assert_allclose(np.asarray(ours.value), theirs, rtol=1e-10, atol=1e-10 * scale)
        np.testing.assert_allclose(planned, theirs, rtol=1e-10, atol=1e-10 * scale)


@pytest.mark.parametrize("sample", CHECKED, ids=lambda s: s.name)
def test_the_gradient_passes_the_check(sample):
    report = graph.check_grads(sample.function, sample.inputs, order=sample.orders, tolerance=1e-6)
    assert not any(a.kinks for a in report.arguments)


@every_row
def test_the_shape_rule_is_the_kernels(sample):
    recorded, _, gradients = traced(sample)
    for g, x in zip(gradients, recorded.inputs, strict=True):
        assert (g.shape, g.dtype) == (x.shape, x.dtype)
    for node in recorded.nodes:
        if node.op is not None:
            shape, dtype = node.op.infer(node.inputs, node.static)
            value = np.asarray(node.value)
            assert (shape, dtype) == (node.shape, node.dtype) == (value.shape, value.dtype), node


@every_row
def test_single_precision_stays_single(sample):
    inputs = [a.astype(np.float32) for a in sample.inputs]
    expected = np.asarray(sample.function(*inputs)).dtype
    recorded, _, gradients = traced(sample, inputs)
    assert [o.dtype for o in recorded.outputs] == [expected]
    assert [g.dtype for g in gradients] == [np.float32] * len(inputs)
    if expected == np.float32:
        assert [n for n in recorded.nodes if n.dtype == np.float64] == []


def test_every_primitive_and_covered_function_is_in_the_table(monkeypatch):
    called = set()
    tables = (UFUNCS, FUNCTIONS, REDUCTIONS, ACCUMULATIONS)
    for table in tables:
        kind = id(table)
        for function, record in list(table.items()):

            def spy(*args, _function=function, _record=record, _kind=kind, **options):
                called.add((_kind, _function))
                return _record(*args, **options)

            monkeypatch.setitem(table, function, spy)
    seen = set()
    for sample in SAMPLES:
        recorded, _, _ = traced(sample)
        seen |= {node.op.name for node in recorded.nodes if node.op is not None}
    random = {"random_words", "keep"}  # test_context.py
    assert set(graph.PRIMITIVES) - seen - random - {"alias"} == set()
    by_values = {np.nonzero, np.argwhere, np.flatnonzero}  # test_errors.py: with compile=False only
    missing = [f.__name__ for t in tables for f in t if (id(t), f) not in called and f not in by_values]
    assert missing == []

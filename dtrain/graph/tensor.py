"""Recording: a graph is an append-only list of nodes, and a `Tensor` is one node, the user's handle of a recorded
array.

Owns the nodes, their values and the places in the user's code that made them. The invariant: a node is written once,
and its inputs stand before it in `Graph.nodes`, so list order is topological order. What an operation computes is in
`primitive.py`, what its derivative is in `ops/`, and how a recorded graph is run fast in `plan.py`.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from dtrain.errors import TraceError, UnsupportedFunctionError
from dtrain.graph.conversions import Conversions
from dtrain.graph.location import format_line as format_line
from dtrain.graph.location import user_line as user_line
from dtrain.graph.nearest import not_covered
from dtrain.graph.operators import ACCUMULATIONS, FUNCTIONS, METHODS, REDUCTIONS, SPECIAL, UFUNCS, Operators

if TYPE_CHECKING:
    from dtrain.graph.primitive import Primitive

EMPTY: dict[str, Any] = {}
_ACTIVE = threading.local()
_TABLES: dict[str, dict[np.ufunc, Callable[..., Any]]] = {
    "__call__": UFUNCS,
    "reduce": REDUCTIONS,
    "accumulate": ACCUMULATIONS,
}


class Tensor(Operators, Conversions):
    """A recorded array. NumPy functions, operators and array methods on it record themselves into its graph.

    `op` is None for an input and for a constant. `shape` and `dtype` are always known; `value` is computed when
    somebody asks. A `weak` tensor came from a Python scalar and takes the dtype of what it meets, as NumPy's own rule
    (NEP 50) has it.
    """

    __slots__ = (
        "__weakref__",
        "_line",
        "_value",
        "dtype",
        "graph",
        "index",
        "inputs",
        "name",
        "op",
        "scope",
        "shape",
        "static",
        "weak",
    )
    __array_priority__ = 1000.0

    def __init__(
        self,
        graph: Graph,
        op: Primitive | None,
        inputs: tuple[Tensor, ...],
        static: dict[str, Any],
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        value: Any,
        line: tuple[str, int],
        name: str = "",
        weak: bool = False,
    ) -> None:
        self.graph = graph
        self.op = op
        self.inputs = inputs
        self.static = static
        self.shape = shape
        self.dtype = dtype
        self._value = value
        self._line = line
        self.name = name
        self.scope = graph.scope
        self.weak = weak
        nodes = graph.nodes
        self.index = len(nodes)
        nodes.append(self)

    # -- what it is ---------------------------------------------------------------------------------------------------

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        size = 1
        for n in self.shape:
            size *= n
        return size

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    @property
    def itemsize(self) -> int:
        return self.dtype.itemsize

    @property
    def location(self) -> str:
        """The user's line that made this node, as "file.py:14"."""
        return format_line(self._line)

    @property
    def is_constant(self) -> bool:
        return self.op is None and self.name == "constant"

    @property
    def is_input(self) -> bool:
        return self.op is None and self.name != "constant"

    @property
    def value(self) -> Any:
        """The array itself, computed from the inputs' values if it is not there yet."""
        if self._value is None:
            _evaluate(self)
        return self._value

    def __repr__(self) -> str:
        value = "" if self._value is None else f", value={np.array2string(np.asarray(self._value), threshold=8)}"
        op = self.op.name if self.op is not None else self.name
        return f"Tensor({op}, shape={self.shape}, dtype={self.dtype}{value})"

    def __setitem__(self, index: Any, value: Any) -> None:
        METHODS["setitem"](self, index, value)

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("len() of a 0-d array")
        return self.shape[0]

    def __iter__(self) -> Iterator[Tensor]:
        if not self.shape:
            raise TypeError("iteration over a 0-d array")
        return (self[i] for i in range(self.shape[0]))

    __hash__ = object.__hash__

    # -- dispatch -----------------------------------------------------------------------------------------------------

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        if options.get("out") is not None:
            self._refuse(
                f"out= (or an in-place operator such as a += b on a plain array) in np.{ufunc.__name__}",
                "arrays are not changed while tracing; write a = a + b",
            )
        if method == "outer" and not options and ufunc in UFUNCS and len(inputs) == 2:
            x, y = inputs
            return ufunc(x[(..., *(None,) * np.ndim(y))] if np.ndim(y) else x, y)
        inputs = tuple([stacked(x) if holds_tensor(x) else x for x in inputs])
        table = _TABLES.get(method)
        function = table.get(ufunc) if table is not None else None
        if function is None and method == "__call__" and "scipy.special" in sys.modules:
            import dtrain.graph.ops.special  # noqa: F401  (fills the table)

            function = SPECIAL.get(ufunc)
        if function is None:
            suffix = "" if method == "__call__" else f".{method}"
            library = "np" if hasattr(np, ufunc.__name__) else "scipy.special"
            raise UnsupportedFunctionError(not_covered(f"{library}.{ufunc.__name__}{suffix}"))
        if options and method == "__call__" and not (set(options) <= {"axis"} and ufunc is np.vecdot):
            raise UnsupportedFunctionError(
                f"np.{ufunc.__name__} with {', '.join(sorted(options))}= is not covered; used at "
                f"{format_line(user_line())}; use np.where(mask, result, other) for where=, x.astype() for dtype="
            )
        return function(*inputs, **options)

    def __array_function__(
        self, function: Callable[..., Any], types: Any, args: Sequence[Any], options: dict[str, Any]
    ) -> Any:
        record = FUNCTIONS.get(function)
        if record is None:
            name = getattr(function, "__name__", str(function))
            module = getattr(function, "__module__", "numpy").replace("numpy", "np", 1)
            raise UnsupportedFunctionError(not_covered(f"{module}.{name}"))
        if options.get("out") is not None:
            self._refuse(f"out= in np.{function.__name__}", "arrays are not changed while tracing; use the result")
        return record(*args, **options)

    def __getitem__(self, index: Any) -> Tensor:
        return METHODS["getitem"](self, index)  # type: ignore[no-any-return]

    @property
    def T(self) -> Tensor:
        return METHODS["transpose"](self)  # type: ignore[no-any-return]

    @property
    def mT(self) -> Tensor:
        return METHODS["mT"](self)  # type: ignore[no-any-return]

    @property
    def real(self) -> Tensor:
        return METHODS["real"](self)  # type: ignore[no-any-return]

    @property
    def imag(self) -> Tensor:
        return METHODS["imag"](self)  # type: ignore[no-any-return]

    def __getattr__(self, name: str) -> Any:
        # Reached only for names that are not attributes: the array methods (x.sum(), x.reshape(...)) of the table.
        method = METHODS.get(name)
        if method is None:
            if not name.startswith("__") and hasattr(np.ndarray, name):
                raise UnsupportedFunctionError(not_covered(f"ndarray.{name}"))
            raise AttributeError(f"a traced array has no attribute {name!r}")
        return lambda *args, **options: method(self, *args, **options)


def holds_tensor(x: Any) -> bool:
    """Whether a traced array is among nested lists."""
    return isinstance(x, list | tuple) and any(isinstance(part, Tensor) or holds_tensor(part) for part in x)


def stacked(x: Any) -> Any:
    """Return nested lists with traced arrays among them as one array, as np.array makes one of plain ones."""
    return np.stack([stacked(part) if holds_tensor(part) else part for part in x])


class Graph:
    """An append-only list of nodes in topological order, with the inputs and outputs of the function it records.

    While `is_eager`, every recorded operation is also computed, so that print, a debugger and a stack trace work at
    the user's line. The reverse sweep records without computing.
    """

    depth = 0
    """How many graphs this one lies within: that of the body of a loop lies within the one that holds the loop."""

    def __init__(self, is_branching_allowed: bool = False) -> None:
        self.nodes: list[Tensor] = []
        self.inputs: list[Tensor] = []
        self.outputs: list[Tensor] = []
        self.key: Tensor | None = None
        """The input uint64[4] = (seed, step, shard, 0) of everything random; None if nothing is."""
        self.random_places = 0
        self.is_eager = True
        self.is_branching_allowed = is_branching_allowed
        self.scope = ""
        self.line: tuple[str, int] | None = None
        """When set, new nodes take this place instead of the caller's: the reverse sweep's nodes name the forward
        line."""
        self._constants: dict[Any, Tensor] = {}
        self._scalars: dict[Any, Tensor] = {}

    def input(self, value: Any, name: str = "input", weak: bool = False) -> Tensor:
        """Append an input. `value` gives shape and dtype, and its reference is kept."""
        array = np.asarray(value)
        node = Tensor(self, None, (), EMPTY, array.shape, array.dtype, array, self.line or user_line(), name, weak)
        self.inputs.append(node)
        return node

    def constant(self, value: Any, dtype: Any = None) -> Tensor:
        """Return the node of a constant; the same array (by identity) or the same scalar gives the same node.

        Arrays are kept by reference: what the user later writes into one is what the next run reads.
        """
        if isinstance(value, np.ndarray):
            if dtype is not None and value.dtype != dtype:
                value = value.astype(dtype)
            key: Any = id(value)
        else:
            value = np.asarray(value, dtype)
            if not value.shape:
                value.setflags(write=False)  # ours alone: kernels may rely on its value
            key = (value.dtype.str, value.shape, value.tobytes())
        node = self._constants.get(key)
        if node is None:
            if value.dtype == object or value.dtype.kind not in "biufc":
                raise TraceError(
                    f"a {type(value).__name__} of dtype {value.dtype} at {format_line(user_line())} is not numeric"
                )
            node = Tensor(self, None, (), EMPTY, value.shape, value.dtype, value, self.line or user_line(), "constant")
            self._constants[key] = node
        return node

    def scalar(self, value: Any, dtype: np.dtype[Any]) -> Tensor:
        """Return the constant of a Python number in this dtype. As `constant`, but without making an array to find
        it."""
        key = (dtype, value)
        node = self._scalars.get(key) if value else None  # 0.0 and -0.0 are equal keys
        if node is None:
            node = self.constant(dtype.type(value))
            if value:
                self._scalars[key] = node
        return node

    def capture(self, x: Tensor) -> Tensor:
        """Return x itself if it is of this graph. A body of a loop (`loops.py`) takes in what it closes over."""
        if x.graph is not self:
            raise TraceError(f"an array of another traced function at {format_line(user_line())}: pass it in")
        return x

    def forget_values(self) -> None:
        """Drop the recorded values (constants stay), so that a kept graph holds no activations."""
        for node in self.nodes:
            if not node.is_constant:
                node._value = None

    def __str__(self) -> str:
        from dtrain.graph.show import show

        return show(self)


def _evaluate(node: Tensor) -> None:
    missing: dict[int, Tensor] = {}
    stack = [node]
    while stack:
        current = stack.pop()
        if current._value is not None or current.index in missing:
            continue
        if current.op is None:
            raise TraceError(
                f"the value of input {current.name!r} is no longer kept: this graph belongs to a compiled function"
            )
        missing[current.index] = current
        stack.extend(current.inputs)
    for index in sorted(missing):
        current = missing[index]
        assert current.op is not None
        current._value = current.op.evaluate([i._value for i in current.inputs], current.static)


def active_graph() -> Graph | None:
    """Return the graph that this thread is recording into, or None."""
    stack: list[Graph] = getattr(_ACTIVE, "stack", [])
    return stack[-1] if stack else None


@contextmanager
def recording(graph: Graph) -> Iterator[Graph]:
    """Make `graph` the one that this thread records into."""
    if not hasattr(_ACTIVE, "stack"):
        _ACTIVE.stack = []
    _ACTIVE.stack.append(graph)
    try:
        yield graph
    except ValueError as error:
        # NumPy puts a message of its own over that of a refused conversion.
        if isinstance(error.__cause__, TraceError) and str(error).startswith("setting an array element"):
            raise error.__cause__ from None
        raise
    finally:
        _ACTIVE.stack.pop()


@contextmanager
def scope(name: str) -> Iterator[None]:
    """Name the part of the model that the nodes made inside belong to ("layers.0"); scopes nest with a dot."""
    graph = active_graph()
    if graph is None:
        yield
        return
    outer = graph.scope
    graph.scope = f"{outer}.{name}" if outer else name
    try:
        yield
    finally:
        graph.scope = outer

"""Rows of contractions, linear systems, decompositions, norms, Fourier transforms and convolutions."""

from __future__ import annotations

import numpy as np
import torch

from tests.ops_samples import ABOVE, CUBE, V, X, Y, real, row

SQUARE = real("square", 3, 3) + 2 * np.eye(3)
BATCH = real("squares", 2, 3, 3) + np.array([2.0, -2.5])[:, None, None] * np.eye(3)
TALL, WIDE = real("tall", 2, 4, 3), real("wide", 2, 3, 4)
B, C = real("b", 4, 5), real("d", 2, 4, 3)
linalg = torch.linalg


def symmetric(x):
    return x + x.mT


def positive(x):
    return x @ x.mT + 0.5 * np.eye(3, dtype=np.float64 if x.dtype in (np.float64, torch.float64) else np.float32)


def positive_torch(x):
    return x @ x.mT + 0.5 * torch.eye(3, dtype=x.dtype)


row("dot of cubes", lambda x, y: np.dot(x, y), None, CUBE, C)
row("inner of cubes", lambda x, y: np.inner(x, y), None, X, CUBE)
row("inner of scalar", lambda x, y: np.inner(x, y), torch.mul, X, np.array(2.0))
row("vdot", np.vdot, lambda x, y: (x * y).sum(), X, Y)
row("vdot of complex", lambda x, y: np.vdot(x + 1j * y, y - 2j * x).imag, lambda x, y: torch.vdot(
    torch.complex(x, y).ravel(), torch.complex(y, -2 * x).ravel()).imag, X, Y)  # fmt: skip
row("matvec", lambda x, v: np.matvec(x, v), lambda x, v: x @ v, CUBE, V)
row("vecmat", lambda x, y: np.vecmat(x, y), lambda x, y: x @ y, V, C)
row("tensordot of 1", lambda x, y: np.tensordot(x, y, 1), lambda x, y: torch.tensordot(x, y, 1), CUBE, B)
row("tensordot of 0", lambda x, y: np.tensordot(x, y, 0), lambda x, y: x[:, None] * y, V, V[:2])
row("linalg products", lambda x, y: np.linalg.matmul(x, y.T) + np.linalg.outer(x[:, 0], y[:, 0])
    + np.linalg.vecdot(x, y) + np.linalg.tensordot(x, y, axes=([1], [1])), lambda x, y: 2 * x @ y.T
    + torch.outer(x[:, 0], y[:, 0]) + linalg.vecdot(x, y), X, Y)  # fmt: skip
row("kron", np.kron, torch.kron, X, Y[:2, :3])
row("kron of other depths", lambda x, v: np.kron(x, v), lambda x, v: torch.kron(x, v), CUBE, V)
row("cross", lambda x, y: np.cross(x, y, axis=0), lambda x, y: linalg.cross(x, y, dim=0), X, Y)
row("cross of rows", lambda x, y: np.cross(x, y[0], axisc=0), None, X[:, :3], Y[:, 1:])
row("linalg.cross", lambda x, y: np.linalg.cross(x, y), linalg.cross, X[:, :3], Y[:, 1:])
row("multi_dot", lambda x, y, z: np.linalg.multi_dot([x, y, z]), lambda x, y, z: x @ y @ z, X, B, real("md", 5, 2))
row("multi_dot of vectors", lambda x, y, v: np.linalg.multi_dot([x, y, y.T, v]), lambda x, y, v: x @ y @ y.T @ v, V, B,
    V[::-1].copy())  # fmt: skip

for _spec in ("ii", "ii->i", "ij->", "ij,jk,kl->il", "ij,jk,ki", "...j,j->...", "i...,...i->...", "ij,ij,ij->ij",
              "ii,ij->j", "i,j,k->kij", "ij,kl->", "ij->ji", "ab,ba"):  # fmt: skip
    _terms = _spec.split("->")[0].split(",")
    _given = [V[:3] if len(t.replace("...", "")) == 1 and "." not in t else SQUARE + 0.1 * i
              for i, t in enumerate(_terms)]  # fmt: skip
    row(f"einsum {_spec}", lambda *a, s=_spec: np.einsum(s, *a), lambda *a, s=_spec: torch.einsum(s, *a), *_given)
row("einsum with batch", lambda x, y: np.einsum("...ij,...jk->...ik", x, y), torch.matmul, CUBE, B)
row("einsum of 1", lambda x, y: np.einsum("ij,jk->ik", x, y), None, X, B[:1])
row("einsum iij", lambda x: np.einsum("iij->j", x), lambda x: torch.einsum("iij->j", x), BATCH[:, :2])
row("einsum of lists", lambda x, y: np.einsum(x, [0, 1], y, [1, 2], [2, 0]), lambda x, y: (x @ y).T, X, B)
row("einsum optimized", lambda x, y: np.einsum("ij,jk,kl->il", x, y, y.T, optimize=True), lambda x, y: x @ y @ y.T, X,
    B)  # fmt: skip

row("inv", np.linalg.inv, torch.inverse, BATCH)
row("pinv", lambda x: np.linalg.pinv(x), linalg.pinv, TALL)
row("pinv of wide", lambda x: np.linalg.pinv(x, rcond=1e-12), linalg.pinv, WIDE)
row("solve", np.linalg.solve, linalg.solve, SQUARE, X)
row("solve of batch", np.linalg.solve, linalg.solve, BATCH, SQUARE)
row("solve of a vector", lambda a, b: np.linalg.solve(a, b), lambda a, b: linalg.solve(a, b), SQUARE, V[:3])
row("solve of stacked vector", lambda a, b: np.linalg.solve(a, b), lambda a, b: linalg.inv(a) @ b, BATCH, V[:3])
row("det", np.linalg.det, linalg.det, BATCH)
row("det of singular", lambda x: np.linalg.det(x), lambda x: x[0, 0] * (x[1, 1] * x[2, 2] - x[1, 2] * x[2, 1])
    - x[0, 1] * (x[1, 0] * x[2, 2] - x[1, 2] * x[2, 0]) + x[0, 2] * (x[1, 0] * x[2, 1] - x[1, 1] * x[2, 0]),
    np.array([[1.0, 2.0, 3.0], [2.0, 4.0, 6.0], [1.0, 0.0, 1.0]]), orders=1)  # fmt: skip
row("slogdet", lambda x: np.linalg.slogdet(x)[1] * np.linalg.slogdet(x).sign,
    lambda x: linalg.slogdet(x)[1] * linalg.slogdet(x)[0], BATCH)  # fmt: skip
for _n in (-2, 0, 1, 3, 4):
    row(f"matrix_power {_n}", lambda x, n=_n: np.linalg.matrix_power(x, n),
        lambda x, n=_n: linalg.matrix_power(x, n), BATCH)  # fmt: skip
row("matrix_rank", lambda x: x * np.linalg.matrix_rank(x), lambda x: 3 * x, SQUARE)
row("lstsq", lambda a, b: np.linalg.lstsq(a, b, rcond=None)[0] * np.sum(np.linalg.lstsq(a, b)[1]),
    lambda a, b: linalg.pinv(a) @ b * (b - a @ linalg.pinv(a) @ b).square().sum(), TALL[0], X.T)  # fmt: skip
row("lstsq of wide", lambda a, b: np.linalg.lstsq(a, b)[0], lambda a, b: linalg.pinv(a) @ b, WIDE[0], V[:3])
row("tensorinv", lambda x: np.linalg.tensorinv(x.reshape(3, 3), ind=1), linalg.inv, SQUARE)
row("tensorsolve", lambda a, b: np.linalg.tensorsolve(a, b), lambda a, b: linalg.solve(a, b), SQUARE, V[:3])
row("tensorsolve along", lambda a, b: np.linalg.tensorsolve(a, b, axes=(0,)), lambda a, b: linalg.solve(a.T, b), SQUARE,
    V[:3])  # fmt: skip

row("cholesky", lambda x: np.linalg.cholesky(positive(x)), lambda x: linalg.cholesky(positive_torch(x)), BATCH)
row("upper cholesky", lambda x: np.linalg.cholesky(positive(x), upper=True),
    lambda x: linalg.cholesky(positive_torch(x)).mT, SQUARE)  # fmt: skip
row("qr of tall", lambda x: np.linalg.qr(x).Q @ np.diag(V[:3].astype(x.dtype)) @ np.linalg.qr(x).R,
    lambda x: linalg.qr(x)[0] @ torch.diag(torch.tensor(V[:3])) @ linalg.qr(x)[1], TALL)  # fmt: skip
row("qr of wide", lambda x: np.linalg.qr(x)[1], lambda x: linalg.qr(x)[1], WIDE)
row("qr complete", lambda x: np.linalg.qr(x, "complete")[0] * np.linalg.qr(x, mode="r"), None, SQUARE)
row("eigh", lambda x: (np.linalg.eigh(symmetric(x))[1] * np.sin(np.linalg.eigh(symmetric(x)).eigenvalues)[..., None, :])
    @ np.linalg.eigh(symmetric(x))[1].mT, lambda x: (linalg.eigh(symmetric(x))[1]
    * torch.sin(linalg.eigh(symmetric(x))[0])[..., None, :]) @ linalg.eigh(symmetric(x))[1].mT, BATCH)  # fmt: skip
row("eigvalsh", lambda x: np.linalg.eigvalsh(symmetric(x), UPLO="U"), lambda x: linalg.eigvalsh(symmetric(x)), BATCH)
row("eigvalsh of equal", lambda x: np.sum(np.linalg.eigvalsh(symmetric(x)) ** 2),
    lambda x: symmetric(x).square().sum(), np.eye(3), orders=0)  # fmt: skip
row("eigvals", lambda x: np.prod(np.linalg.eigvals(x), axis=-1).real, linalg.det, BATCH)
row(
    "eig", lambda x: np.abs(np.linalg.eig(x)[1]) + np.sin(np.linalg.eig(x).eigenvalues.real)[..., None, :], None, SQUARE
)
for _name, _x in (("tall", TALL), ("wide", WIDE)):
    row(f"svd of {_name}", lambda x: np.linalg.svd(x, full_matrices=False)[0]
        @ (np.sin(np.linalg.svd(x, False).S)[..., None] * np.linalg.svd(x, full_matrices=False).Vh),
        lambda x: linalg.svd(x, full_matrices=False)[0] @ (torch.sin(linalg.svd(x, full_matrices=False)[1])[..., None]
        * linalg.svd(x, full_matrices=False)[2]), _x)  # fmt: skip
row("svd of square", lambda x: np.square(np.linalg.svd(x)[0]), lambda x: linalg.svd(x)[0].square(), SQUARE)
row("svdvals", lambda x: np.linalg.svd(x, compute_uv=False) * np.linalg.svdvals(x), lambda x: linalg.svdvals(x) ** 2,
    WIDE)  # fmt: skip

for _ord in (None, 0, 1, 2, 3, 1.5, np.inf, -np.inf, -1):
    _theirs = 2 if _ord is None else _ord
    row(f"norm of vectors {_ord}", lambda x, o=_ord: np.linalg.norm(x, o, axis=1, keepdims=True),
        lambda x, o=_theirs: linalg.vector_norm(x, o, dim=1, keepdim=True), CUBE)  # fmt: skip
for _ord in (None, "fro", "nuc", 1, -1, 2, -2, np.inf, -np.inf):
    _theirs = "fro" if _ord is None else _ord
    row(f"norm of matrices {_ord}", lambda x, o=_ord: np.linalg.norm(x, o, axis=(2, 0), keepdims=True),
        lambda x, o=_theirs: linalg.matrix_norm(x, o, dim=(2, 0), keepdim=True), CUBE)  # fmt: skip
row("norm of a matrix", lambda x: np.linalg.norm(x, "fro") + np.linalg.norm(x, 1) + np.linalg.norm(x[0], 3), None, X)
row(
    "norm of complex",
    lambda x, y: np.linalg.norm(x + 1j * y) + np.linalg.norm(x[0] + 1j * y[0], 1),
    lambda x, y: torch.linalg.vector_norm(torch.complex(x, y)) + torch.complex(x[0], y[0]).abs().sum(),
    X,
    Y,
)
row("vector_norm", lambda x: np.linalg.vector_norm(x, axis=(0, 2), ord=3), lambda x: linalg.vector_norm(
    x, 3, dim=(0, 2)), CUBE)  # fmt: skip
row("vector_norm of all", lambda x: np.linalg.vector_norm(x, keepdims=True), lambda x: linalg.vector_norm(
    x, keepdim=True), CUBE)  # fmt: skip
row("matrix_norm", lambda x: np.linalg.matrix_norm(x, ord="nuc"), lambda x: linalg.matrix_norm(x, "nuc"), CUBE)
for _p in (None, -2, 1, "fro"):
    row(
        f"cond {_p}",
        lambda x, p=_p: np.linalg.cond(x, p),
        (lambda x, p=_p: linalg.cond(x, p)) if _p in (None, -2) else None,
        BATCH,
    )

fft = torch.fft


def both(z):
    """Return something real that depends on both parts of z."""
    return z.real * 2 + z.imag**2


def transform(name: str, *options: object, label: str = "") -> None:
    """Add a row of a transform of real numbers."""
    ours, theirs = getattr(np.fft, name), getattr(fft, name)
    row(f"{name} {label}", lambda x: both(ours(x, *options)), lambda x: both(theirs(x, *options)), CUBE)


def transform_to_real(name: str, *options: object, label: str = "") -> None:
    """Add a row of a transform of complex numbers to real ones."""
    ours, theirs = getattr(np.fft, name), getattr(fft, name)

    def function(x, y):
        return ours(x + 1j * y, *options)

    row(f"{name} {label}", function, lambda x, y: theirs(torch.complex(x, y), *options), X, Y)


for _norm in ("backward", "ortho", "forward"):
    for _name in ("fft", "ifft", "rfft", "ihfft"):
        transform(_name, None, 1, _norm, label=_norm)
    for _name in ("irfft", "hfft"):
        for _n in (None, 5):
            transform_to_real(_name, _n, -1, _norm, label=f"{_n} {_norm}")
for _n in (2, 7):
    for _name in ("fft", "ifft", "rfft"):
        transform(_name, _n, label=f"of {_n}")
for _name in ("fft2", "ifft2", "fftn", "ifftn", "rfft2", "rfftn"):
    transform(_name)
for _name in ("irfft2", "irfftn"):
    transform_to_real(_name)
row("rfftn of sizes", lambda x: both(np.fft.rfftn(x, (3, 5), axes=(0, 2))),
    lambda x: both(fft.rfftn(x, (3, 5), (0, 2))),
    CUBE)  # fmt: skip
row("fft there and back", lambda x: np.fft.irfft(np.fft.rfft(x) * 2.0, 4) + np.fft.ifft(np.fft.fft(x)).real,
    lambda x: 3 * x, X)  # fmt: skip
row("fftshift", lambda x: np.fft.fftshift(x) * np.fft.ifftshift(x, axes=1), lambda x: fft.fftshift(x)
    * fft.ifftshift(x, dim=1), CUBE[:, :, :3])  # fmt: skip

_SHORT = V[:3]
for _mode in ("full", "same", "valid"):
    for _a, _b in ((X[0], _SHORT), (_SHORT, V), (V, V[:2])):
        _sizes = f"{len(_a)} {len(_b)}"
        row(f"convolve {_mode} {_sizes}", lambda x, y, m=_mode: np.convolve(x, y, m), None, _a, _b)
        row(f"correlate {_mode} {_sizes}", lambda x, y, m=_mode: np.correlate(x, y, m), None, _a, _b)
row("convolve oracle", lambda x, y: np.convolve(x, y), lambda x, y: torch.nn.functional.conv1d(
    x[None, None], y.flip(0)[None, None], padding=2)[0, 0], V, _SHORT)  # fmt: skip
row("Gaussian process",
    lambda x, y: 0.5 * y @ np.linalg.solve(positive(x), y) + 0.5 * np.linalg.slogdet(positive(x))[1],
    lambda x, y: 0.5 * y @ linalg.solve(positive_torch(x), y) + 0.5 * torch.logdet(positive_torch(x)), SQUARE,
    ABOVE[:, 0])  # fmt: skip
row("eigvalsh reads the lower triangle", lambda x: np.linalg.eigvalsh(x), None, SQUARE)
row("eigvalsh reads the upper triangle", lambda x: np.linalg.eigvalsh(x, "U"), None, BATCH)


def complex_of(x):
    """Return a complex matrix that depends on x alone."""
    return x + (0.5j if isinstance(x.dtype, torch.dtype) else np.array(0.5j, np.result_type(x.dtype, np.complex64))) * (
        x.mT @ x if x.shape[-1] == x.shape[-2] else x * x
    )


def hermitian(x):
    return complex_of(x) @ complex_of(x).conj().mT if isinstance(x, torch.Tensor) else complex_of(x) @ np.conj(
        complex_of(x)).mT  # fmt: skip


def identity(x):
    return np.eye(3, dtype=x.dtype) if isinstance(x.dtype, np.dtype) else torch.eye(3, dtype=x.dtype)


for _name, _f in (
    ("cholesky", lambda x, la: both(la.cholesky(hermitian(x) + identity(x)))),
    ("eigvalsh", lambda x, la: la.eigvalsh(hermitian(x) + identity(x))),
    ("eigh", lambda x, la: abs(la.eigh(hermitian(x))[1]) ** 2),
    ("eigvals", lambda x, la: both(la.eigvals(complex_of(x)) ** 2)),
    ("det", lambda x, la: both(la.det(complex_of(x)))),
    ("slogdet", lambda x, la: both(la.slogdet(complex_of(x))[0]) + la.slogdet(complex_of(x))[1]),
    ("inv", lambda x, la: both(la.inv(complex_of(x)))),
):  # fmt: skip
    _orders = 1 if _name == "eigvals" else 2
    row(f"{_name} of complex", lambda x, f=_f: f(x, np.linalg), None if _name == "eigvals" else lambda x, f=_f: f(
        x, linalg), SQUARE, orders=_orders)  # fmt: skip


def sine_of_values(library, x, sine):
    """The matrix whose singular values are the sines of those of x: it depends on the phases of both factors."""
    u, s, vh = library.svd(complex_of(x), full_matrices=False)
    return u @ (sine(s)[:, None] * vh)


for _name, _x in (("tall", TALL[0]), ("wide", WIDE[0])):
    row(f"svd of complex {_name}", lambda x: np.abs(np.linalg.svd(complex_of(x), full_matrices=False)[0]) ** 2
        + np.linalg.svd(complex_of(x), full_matrices=False)[1], lambda x: linalg.svd(complex_of(x), False)[0].abs() ** 2
        + linalg.svd(complex_of(x), False)[1], _x)  # fmt: skip
    row(f"svd of complex {_name} put together", lambda x: both(sine_of_values(np.linalg, x, np.sin)),
        lambda x: both(sine_of_values(linalg, x, torch.sin)), _x)  # fmt: skip
    row(f"pinv of complex {_name}", lambda x: both(np.linalg.pinv(complex_of(x))),
        lambda x: both(linalg.pinv(complex_of(x))), _x)  # fmt: skip
row("qr of complex", lambda x: both(np.linalg.qr(complex_of(x))[0]), None, TALL[0])
row("real_if_close", lambda x: np.real_if_close(x) * 2, lambda x: x * 2, X)

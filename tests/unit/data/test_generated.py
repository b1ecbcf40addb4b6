"""The digits are the public ones, the spiral gives the public trajectory, the rest is pinned by its properties."""

import hashlib

import numpy as np
import pytest

from dtrain.data import make_source
from dtrain.data.files import read_npz
from dtrain.data.generated import DIGITS_FILE


def digest(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:16]


class TestDigits:
    def test_the_file_is_scikit_learns_copy(self):
        datasets = pytest.importorskip("sklearn.datasets")
        images, labels = datasets.load_digits(return_X_y=True)
        stored = read_npz(DIGITS_FILE, "data")
        assert stored["images"].dtype == stored["labels"].dtype == np.uint8
        np.testing.assert_array_equal(stored["images"], images)
        np.testing.assert_array_equal(stored["labels"], labels)

    def test_the_licence_lies_beside_it(self):
        text = DIGITS_FILE.with_name("digits.LICENSE").read_text()
        for needed in ("Alpaydin", "Kaynak", "CC BY 4.0", "What was changed"):
            assert needed in text

    def test_shapes_dtypes_and_values(self):
        source = make_source("digits")
        assert (source.n, source.n_eval, source.features, source.classes) == (1437, 360, 64, 10)
        for part in (source.train, source.eval):
            assert part["x"].dtype == np.float32
            assert part["y"].dtype == np.int64
            assert part["x"].min() == 0
            assert part["x"].max() == 1

    def test_scale_repeats_every_pixel(self):
        plain, scaled = make_source("digits").train["x"], make_source("digits", scale=3).train["x"]
        square = scaled.reshape(-1, 24, 24)
        for row in range(3):
            for column in range(3):
                np.testing.assert_array_equal(square[:, row::3, column::3].reshape(-1, 64), plain)

    def test_the_split_uses_every_image_once(self):
        source, stored = make_source("digits"), read_npz(DIGITS_FILE, "data")
        x = np.concatenate([source.train["x"], source.eval["x"]]) * 16
        y = np.concatenate([source.train["y"], source.eval["y"]])

        def rows(images, labels):
            return sorted((*image, label) for image, label in zip(images.tolist(), labels.tolist(), strict=True))

        assert rows(x.astype(int), y) == rows(stored["images"], stored["labels"])

    def test_every_digit_is_held_out_in_number(self):
        assert np.bincount(make_source("digits").eval["y"]).tolist() == [37, 33, 33, 36, 36, 44, 39, 37, 35, 30]

    def test_golden_split(self):
        source = make_source("digits")
        assert digest(source.eval["x"]) == "4b442647a2dda911"
        assert digest(source.train["y"].astype("<i8")) == "b5772ea3801f9914"

    def test_float64(self):
        source = make_source("digits", dtype="float64")
        assert source.train["x"].dtype == np.float64
        np.testing.assert_array_equal(source.train["x"], make_source("digits").train["x"])


class TestSpiral:
    def notes(self, seed: int, n: int, classes: int):
        """The code of the course's notes."""
        np.random.seed(seed)
        points, labels = np.zeros((n * classes, 2)), np.zeros(n * classes, dtype="uint8")
        for j in range(classes):
            ix = range(n * j, n * (j + 1))
            r = np.linspace(0.0, 1, n)
            t = np.linspace(j * 4, (j + 1) * 4, n) + np.random.randn(n) * 0.2
            points[ix] = np.c_[r * np.sin(t), r * np.cos(t)]
            labels[ix] = j
        return points, labels

    @pytest.mark.parametrize(("seed", "n", "classes"), [(0, 100, 3), (7, 31, 5)])
    def test_is_that_of_the_notes(self, seed, n, classes):
        state = np.random.get_state()
        try:
            points, labels = self.notes(seed, n, classes)
        finally:
            np.random.set_state(state)
        source = make_source("spiral", seed=seed, samples_per_class=n, classes=classes, dtype="float64")
        np.testing.assert_array_equal(source.train["x"], points)
        np.testing.assert_array_equal(source.train["y"], labels)
        single = make_source("spiral", seed=seed, samples_per_class=n, classes=classes)
        np.testing.assert_array_equal(single.train["x"], points.astype(np.float32))

    def test_evaluates_on_what_it_trains_on_and_leaves_numpys_generator_alone(self):
        state = np.random.get_state()[1].copy()
        source = make_source("spiral")
        assert np.array_equal(np.random.get_state()[1], state)
        assert source.train["y"].dtype == np.int64
        for name in ("x", "y"):
            np.testing.assert_array_equal(source.train[name], source.eval[name])

    def test_gives_the_published_losses_of_the_softmax_classifier(self):
        source = make_source("spiral", dtype="float64")
        x, y = source.train["x"], source.train["y"]
        random = np.random.RandomState(0)
        random.randn(300 + 18)
        w, b = 0.01 * random.randn(2, 3), np.zeros(3)
        losses = []
        for step in range(200):
            scores = np.exp(x @ w + b)
            p = scores / scores.sum(axis=1, keepdims=True)
            if step % 10 == 0:
                losses.append(-np.log(p[range(300), y]).mean() + 0.5e-3 * (w * w).sum())
            p[range(300), y] -= 1
            w, b = w - (x.T @ p / 300 + 1e-3 * w), b - p.mean(axis=0)
        published = [
            *(1.096956, 0.917265, 0.851503, 0.822336, 0.807586, 0.799448, 0.794681, 0.791764, 0.789920, 0.788726),
            *(0.787938, 0.787409, 0.787049, 0.786803, 0.786633, 0.786514, 0.786431, 0.786373, 0.786331, 0.786302),
        ]
        np.testing.assert_allclose(losses, published, atol=6e-7)
        assert ((x @ w + b).argmax(axis=1) == y).mean() == pytest.approx(0.49, abs=0.005)


class TestBlobs:
    def test_sizes_and_balance(self):
        source = make_source("blobs", samples=103, features=5, classes=4, held_out=13)
        assert (source.n, source.n_eval, source.features, source.classes) == (90, 13, 5, 4)
        counts = np.bincount(np.concatenate([source.train["y"], source.eval["y"]]))
        assert counts.tolist() == [26, 26, 26, 25]

    def test_a_fifth_is_held_out_unless_told(self):
        assert make_source("blobs", samples=100).n_eval == 20
        assert make_source("blobs", samples=100, held_out=0).eval == {}

    def test_spread_is_the_deviation_about_the_centres(self):
        source = make_source("blobs", samples=30_000, features=3, classes=3, spread=0.5, held_out=0, dtype="float64")
        x, y = source.train["x"], source.train["y"]
        for k in range(3):
            np.testing.assert_allclose(x[y == k].std(axis=0), 0.5, rtol=0.03)
        centres = make_source("blobs", samples=3000, features=3, classes=3, spread=0, held_out=0).train
        assert len(np.unique(centres["x"], axis=0)) == 3
        assert np.abs(centres["x"]).max() <= 10

    def test_is_a_function_of_its_seed(self):
        assert digest(make_source("blobs", seed=3).train["x"]) == digest(make_source("blobs", seed=3).train["x"])
        assert digest(make_source("blobs", seed=3).train["x"]) != digest(make_source("blobs", seed=4).train["x"])
        assert make_source("blobs").train["y"][:12].tolist() == [2, 0, 2, 2, 1, 2, 2, 0, 1, 1, 1, 0]


def test_synthetic_has_the_shape_asked_for():
    source = make_source("synthetic", shape=[4, 4, 3], samples=50, classes=7)
    assert source.train["x"].shape == (50, 4, 4, 3)
    assert source.train["x"].dtype == np.float32
    assert 0 <= source.train["x"].min() < 0.02
    assert 0.98 < source.train["x"].max() <= 1
    assert set(source.train["y"].tolist()) == set(range(7))
    assert (source.features, source.classes, source.eval) == (48, 7, {})

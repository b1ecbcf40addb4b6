"""Every sample once per epoch, whatever the sizes; the order is pinned, for changing it changes every result."""

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dtrain.data.sampler import Sampler, batch_size, gather, permutation, position, shard_bounds
from dtrain.errors import InputError

sizes = st.integers(1, 200)
shard_counts = st.integers(1, 12)
seeds = st.integers(0, 2**64 - 1)


def indices_of_epoch(sampler: Sampler, epoch: int) -> list[list[np.ndarray]]:
    first = epoch * sampler.steps_per_epoch
    return [
        [sampler.indices(first + i, shard) for shard in range(sampler.shards)] for i in range(sampler.steps_per_epoch)
    ]


@given(sizes, sizes, shard_counts, seeds, st.integers(0, 5), st.booleans())
def test_every_sample_is_used_exactly_once_per_epoch(n, batch, shards, seed, epoch, shuffle):
    steps = indices_of_epoch(Sampler(n, batch, shards, seed, shuffle), epoch)
    used = np.concatenate([shard for step in steps for shard in step])
    assert sorted(used.tolist()) == list(range(n))
    if not shuffle:
        assert used.tolist() == list(range(n))


@given(sizes, sizes, shard_counts, seeds)
def test_batches_are_full_but_for_the_last(n, batch, shards, seed):
    sampler = Sampler(n, batch, shards, seed)
    counts = [sum(len(shard) for shard in step) for step in indices_of_epoch(sampler, 1)]
    assert counts == [sampler.batch_size(sampler.steps_per_epoch + i) for i in range(len(counts))]
    assert counts[:-1] == [batch] * (len(counts) - 1)
    assert counts[-1] == (n % batch or min(n, batch))


@given(st.integers(0, 300), shard_counts)
def test_shards_are_contiguous_and_as_even_as_it_goes(size, shards):
    bounds = shard_bounds(size, shards)
    assert len(bounds) == shards
    assert [low for low, _ in bounds] == [0, *(high for _, high in bounds[:-1])]
    assert bounds[-1][1] == size
    lengths = [high - low for low, high in bounds]
    assert max(lengths) - min(lengths) <= 1
    assert lengths == sorted(lengths, reverse=True)


@given(sizes, sizes, shard_counts, seeds, st.lists(st.integers(0, 2000), min_size=1, max_size=20))
def test_an_answer_does_not_depend_on_what_was_asked_before(n, batch, shards, seed, steps):
    used = Sampler(n, batch, shards, seed)
    for step in steps:
        shard = step % shards
        np.testing.assert_array_equal(used.indices(step, shard), Sampler(n, batch, shards, seed).indices(step, shard))


@given(sizes, sizes, seeds, st.integers(0, 2000))
def test_a_batch_is_a_run_of_the_permutation_of_its_epoch(n, batch, seed, step):
    epoch, index = position(step, n, batch)
    sampler = Sampler(n, batch, 3, seed)
    samples = np.concatenate([sampler.indices(step, shard) for shard in range(3)])
    expected = permutation(seed, epoch, n)[index * batch : index * batch + batch_size(step, n, batch)]
    np.testing.assert_array_equal(samples, expected)


def test_the_cut_into_shards_does_not_change_the_batch():
    one, many = Sampler(101, 32, 1, 7), Sampler(101, 32, 50, 7)
    for step in range(8):
        parts = [many.indices(step, shard) for shard in range(50)]
        np.testing.assert_array_equal(np.concatenate(parts), one.indices(step, 0))
    assert [len(part) for part in parts] == [1] * 5 + [0] * 45


def test_golden_order_of_samples():
    assert permutation(0, 0, 12).tolist() == [2, 9, 0, 4, 10, 7, 5, 3, 8, 1, 11, 6]
    assert permutation(0, 1, 12).tolist() == [7, 1, 5, 11, 4, 10, 8, 6, 9, 3, 0, 2]
    assert permutation(2**64 - 1, 3, 12).tolist() == [2, 0, 5, 1, 6, 8, 10, 7, 3, 9, 4, 11]
    assert (
        hashlib.sha256(permutation(1, 2, 60000).astype("<i8").tobytes()).hexdigest()
        == "8b56ffe34989bee058eeefd21b526044991970800d339d8601a4217715f7b023"
    )
    assert Sampler(10, 4, 3, 5).indices(4, 1).tolist() == [3]


@given(seeds, st.integers(0, 2**40), sizes)
def test_permutation_is_the_stable_order_of_philox_words(seed, epoch, n):
    key = np.array([seed, int.from_bytes(b"shuffle", "big")], np.uint64)
    words = np.random.Philox(key=key, counter=np.array([0, 0, epoch, 0], np.uint64)).random_raw(n).tolist()
    result = permutation(seed, epoch, n)
    assert result.dtype == np.int64
    assert result.tolist() == sorted(range(n), key=words.__getitem__)


def test_orders_differ_between_seeds_and_epochs():
    orders = {tuple(permutation(seed, epoch, 50)) for seed in range(10) for epoch in range(10)}
    assert len(orders) == 100
    assert tuple(permutation(2**63, 0, 50)) != tuple(permutation(2**63 + 1, 0, 50))


def test_the_mean_place_of_a_sample_is_the_middle():
    places = np.argsort([permutation(seed, 0, 20) for seed in range(2000)], axis=1)
    # The deviation of a mean of 2000 uniform places is 0.129.
    np.testing.assert_allclose(places.mean(axis=0), 9.5, atol=0.65)


def test_indices_cannot_be_written():
    for shuffle in (True, False):
        sampler = Sampler(10, 5, 2, 0, shuffle)
        for step in (0, 2):
            with pytest.raises(ValueError, match="read-only"):
                sampler.indices(step, 0)[0] = 3


@pytest.mark.parametrize(
    ("n", "batch", "shards", "seed", "message"),
    [
        (0, 1, 1, 0, "samples of the training data: expected at least 1, got 0"),
        (1, 0, 1, 0, "batch: expected at least 1, got 0"),
        (1, 1, 0, 0, "shards: expected at least 1, got 0"),
        (1, 1, 1, -1, r"seed: expected a whole number from 0 to 2\*\*64 - 1, got -1"),
        (1, 1, 1, 2**64, "seed: expected a whole number"),
    ],
)
def test_settings_out_of_range_are_refused(n, batch, shards, seed, message):
    with pytest.raises(InputError, match=message):
        Sampler(n, batch, shards, seed)


@pytest.mark.parametrize(("step", "shard"), [(-1, 0), (0, 2), (0, -1)])
def test_a_shard_that_does_not_exist_is_an_index_error(step, shard):
    with pytest.raises(IndexError, match="there are 2 shards"):
        Sampler(10, 5, 2, 0).indices(step, shard)


class TestGather:
    arrays = {  # noqa: RUF012
        "x": np.arange(60, dtype=np.float32).reshape(10, 2, 3),
        "y": np.arange(10, dtype=np.int64),
        "mask": np.arange(10) % 3 == 0,
    }

    @given(st.lists(st.integers(0, 9), max_size=12))
    def test_takes_rows(self, samples):
        indices = np.array(samples, np.int64)
        batch = gather(self.arrays, indices)
        for name, array in self.arrays.items():
            assert batch[name].dtype == array.dtype
            np.testing.assert_array_equal(batch[name], array[indices])

    def test_fills_the_given_buffers(self):
        out = {name: np.zeros((3, *array.shape[1:]), array.dtype) for name, array in self.arrays.items()}
        batch = gather(self.arrays, np.array([9, 0, 9]), out)
        for name, array in self.arrays.items():
            assert batch[name] is out[name]
            np.testing.assert_array_equal(out[name], array[[9, 0, 9]])

    def test_reads_unaligned_arrays_and_gives_aligned_ones(self):
        memory = np.zeros(4 * 7 * 8 + 1, np.uint8)
        unaligned = memory[1:].view(np.float64).reshape(4, 7)
        unaligned[...] = np.arange(28).reshape(4, 7)
        assert not unaligned.flags.aligned
        batch = gather({"x": unaligned}, np.array([3, 1]))
        assert batch["x"].flags.aligned
        assert batch["x"].tolist() == [list(range(21, 28)), list(range(7, 14))]

    @pytest.mark.parametrize("bad", [-1, 10, 2**40, -(2**63)])
    def test_an_index_outside_is_refused_and_nothing_written(self, bad):
        out = {"y": np.full(2, 77, np.int64)}
        with pytest.raises(IndexError, match=f"sample {bad} asked for, but there are 10"):
            gather({"y": self.arrays["y"]}, np.array([1, bad]), out)
        assert out["y"].tolist() == [77, 77]

    @pytest.mark.parametrize("buffer", [np.zeros((2, 3), np.float32), np.zeros((2, 2, 3), np.float64)])
    def test_a_buffer_that_does_not_fit_is_refused(self, buffer):
        with pytest.raises(ValueError, match=r"gather of 'x': expected a buffer float32 \(2, 2, 3\), got"):
            gather({"x": self.arrays["x"]}, np.array([1, 2]), {"x": buffer})

    def test_strided_arrays_are_refused_rather_than_copied_whole(self):
        with pytest.raises(ValueError, match="C-contiguous"):
            gather({"x": self.arrays["x"][:, ::2]}, np.array([1]))

    def test_nothing_of_the_size_of_the_data_is_allocated(self):
        import tracemalloc

        memory = np.zeros(8 * 1_000_000 + 1, np.uint8)
        data = {"x": memory[1:].view(np.float64).reshape(-1, 10)}
        out = {"x": np.empty((1000, 10))}
        indices = np.arange(1000)
        gather(data, indices, out)
        tracemalloc.start()
        gather(data, indices, out)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 20_000

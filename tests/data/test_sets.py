"""Mixtures: a source's weight is its passes per epoch, and a run resumes at the next batch."""

import time
from collections import Counter

import pytest
import torch

from lightning_dpo import PreferenceDataModule
from lightning_dpo.data.sampler import EpochSampler
from lightning_dpo.errors import DataError
from lightning_dpo.signatures import ArgumentError


def epoch(order: EpochSampler, number: int) -> list[int]:
    order.set_epoch(number)
    return list(order)


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("weight", [0.5, 1.0, 1.5, 2.0, 3.0])
def test_two_epochs_see_every_pair_twice_its_weight(weight, shuffle):
    order = EpochSampler([40, 10], [weight, 1.0], seed=3, shuffle=shuffle)
    seen = Counter(epoch(order, 0) + epoch(order, 1))
    assert {seen[i] for i in range(40)} == {2 * weight} and {seen[i] for i in range(40, 50)} == {2}
    assert len(order) == 40 * weight + 10


def test_half_a_source_is_a_seeded_half():
    halves = [set(epoch(EpochSampler([40], [0.5], seed, True), 0)) for seed in (0, 0, 1)]
    assert halves[0] == halves[1] != halves[2] and len(halves[0]) == 20


def test_without_shuffle_rows_keep_the_order_of_sources_and_rows():
    assert epoch(EpochSampler([3, 2], [2.0, 1.0], 0, False), 0) == [0, 1, 2, 0, 1, 2, 3, 4]
    half = epoch(EpochSampler([40], [0.5], 0, False), 0)
    assert half == sorted(half)


def test_a_small_weight_still_takes_a_row():
    assert len(EpochSampler([3], [0.01], 0, True)) == 1


@pytest.fixture
def mixture(reviews, few_reviews, tmp_path):
    lines = few_reviews.read_text().splitlines(keepends=True)
    for name, part in (("a.jsonl", lines[:20]), ("b.jsonl", lines[20:25])):
        (tmp_path / name).write_text("".join(part))

    def make(**options) -> PreferenceDataModule:
        train = [str(tmp_path / "a.jsonl"), {"path": str(tmp_path / "b.jsonl"), "weight": 2}]
        data = PreferenceDataModule(reviews / "model", train, batch_size=4, **options)
        data.setup()
        return data

    return make


def test_a_batch_over_several_sources_holds_the_pairs_of_its_positions(mixture):
    data = mixture()
    for batch in data.train_dataloader():
        for i, position in enumerate(batch.index.tolist()):
            stored, row = data.train_pairs.locate(position)
            assert torch.equal(batch.chosen.row(i), stored.pairs.chosen.row(row))
            assert data.train_pairs.where(position).endswith(f"{'a' if position < 20 else 'b'}.jsonl:{row + 1}")


def two_epochs(loader) -> list[list]:
    epochs = []
    for epoch in range(2):
        for sampler in (loader.sampler, getattr(loader.batch_sampler, "sampler", None)):
            if hasattr(sampler, "set_epoch"):
                sampler.set_epoch(epoch)  # as Lightning does; a stream counts its epochs itself
        epochs.append([batch.chosen.values.tolist() for batch in loader])
    return epochs


@pytest.mark.parametrize("options", [{}, {"streaming": True}, {"max_tokens": 200}], ids=str)
@pytest.mark.parametrize("workers", [0, 1])
def test_a_run_resumes_with_the_batches_that_it_has_not_taken(mixture, options, workers):
    whole, following = two_epochs(mixture(**options, seed=5).train_dataloader())
    stopped = mixture(**options, seed=5)
    for _, batch in zip(range(3), stopped.train_dataloader(), strict=False):
        stopped.used(batch, epoch=0)
    resumed = mixture(**options, seed=5, num_workers=workers)
    resumed.load_state_dict(stopped.state_dict())
    rest, next_epoch = two_epochs(resumed.train_dataloader())
    assert len(whole) >= 8 and rest == whole[3:] and next_epoch == following != whole


def test_a_later_epoch_resumes_in_its_own_order(mixture):
    data = mixture()
    loader = data.train_dataloader()
    loader.sampler.set_epoch(2)
    whole = [batch.index.tolist() for batch in loader]
    resumed = mixture()
    resumed.load_state_dict({"epoch": 2, "batches": 5, "rows_used": 0, "stream_counts": {}})
    assert [batch.index.tolist() for batch in resumed.train_dataloader()] == whole[5:]


def test_a_token_budget_fills_batches_and_keeps_the_weights(mixture):
    data = mixture(max_tokens=200, seed=2)
    loader = data.train_dataloader()
    epochs = []
    for epoch in range(2):
        loader.batch_sampler.sampler.set_epoch(epoch)
        epochs.append(list(loader))
    sizes = [[sum(len(side.values) for side in (b.prompt, b.chosen, b.rejected)) for b in epoch] for epoch in epochs]
    pairs = [[b.index.tolist() for b in epoch] for epoch in epochs]
    assert all(max(s) <= 200 for s in sizes) and all(len(b) <= 4 for b in pairs[0])
    assert Counter(i for b in pairs[0] for i in b) == Counter({i: 1 if i < 20 else 2 for i in range(25)})
    assert pairs[0] != pairs[1] and sorted(pairs[0]) == sorted(pairs[1]) and len(loader) == len(pairs[0])
    # no batch had room for the first pair of the next one
    order = loader.batch_sampler.batches
    tokens = data.train_pairs.tokens()
    for batch, following in zip(order, order[1:], strict=False):
        assert len(batch) == 4 or tokens[batch].sum() + tokens[following[0]] > 200


def test_a_token_budget_that_cannot_be_kept_is_refused(mixture, few_reviews, reviews):
    most = int(mixture().train_pairs.tokens().max())
    with pytest.raises(DataError, match=rf"[ab].jsonl:\d+ has {most} tokens .* type data.max_tokens={most}"):
        mixture(max_tokens=most - 1).train_dataloader()
    with pytest.raises(DataError, match="lengths are known only as a stream is read"):
        mixture(max_tokens=200, streaming=True)
    data = PreferenceDataModule(reviews / "model", [{"path": str(few_reviews), "weight": 0.5}], max_tokens=500)
    data.setup()
    with pytest.raises(DataError, match="use whole weights"):
        data.train_dataloader()


def test_a_batch_is_collated_in_a_millisecond(reviews):
    """The median of 50 batches of 8 pairs, including `sharing`."""
    data = PreferenceDataModule(reviews / "model", reviews / "train.jsonl", batch_size=8)
    data.setup()
    loader, times = data.train_dataloader(), []
    for positions in list(loader.batch_sampler)[:50]:
        start = time.perf_counter()
        loader.collate_fn(positions)
        times.append(time.perf_counter() - start)
    assert sorted(times)[25] < 2e-3  # 0.5 ms on an idle machine; the rest is room for a busy one


@pytest.mark.parametrize("val", [0.1, None])
def test_a_source_may_give_no_pair_to_one_side_of_a_split(reviews, few_reviews, tmp_path, val):
    (tmp_path / "one.jsonl").write_text(few_reviews.read_text().splitlines()[0])
    (tmp_path / "none.jsonl").write_text('{"prompt": "plot", "chosen": " cast", "rejected": " cast"}')
    train = [str(few_reviews), str(tmp_path / "one.jsonl"), str(tmp_path / "none.jsonl")]
    data = PreferenceDataModule(reviews / "model", train, val=val, batch_size=4, cache_dir=tmp_path / "tokens")
    data.setup()
    assert 0 in data.train_pairs.sizes and all(len(pairs) for pairs in data.pairs().values())
    loaders = [data.train_dataloader(), *data.val_dataloader()]
    assert sum(len(batch) for loader in loaders for batch in loader) == 49


def test_a_set_without_pairs_is_refused_with_the_reasons(reviews, tmp_path):
    (tmp_path / "none.jsonl").write_text('{"prompt": "plot", "chosen": " cast", "rejected": " cast"}')
    data = PreferenceDataModule(reviews / "model", tmp_path / "none.jsonl", val=0.1, cache_dir=tmp_path / "tokens")
    with pytest.raises(DataError, match="no usable pairs; dropped: {'identical': 1}"):
        data.setup()


@pytest.mark.parametrize("options", [dict(on_bad_row="Stop"), dict(turns="All"), dict(val=-0.1), dict(ranked="best")])
def test_arguments_from_python_are_checked_too(reviews, few_reviews, options):
    with pytest.raises(ArgumentError, match="allowed"):
        PreferenceDataModule(reviews / "model", few_reviews, **options)

"""The cached reference: the numbers of a frozen copy, found by content, computed once, never stale."""

import json
import shutil
import threading
from copy import deepcopy
from functools import partial
from itertools import pairwise
from types import SimpleNamespace

import lightning as L
import pytest
import torch

from lightning_dpo import CachedReference, CopyReference, DPOModule, PreferenceDataModule, losses
from lightning_dpo.reference import precompute, store
from lightning_dpo.scoring import Scorer
from tests.conftest import llama
from tests.pairs import tree_pairs


def trainer(**options) -> L.Trainer:
    silent = dict(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    return L.Trainer(max_epochs=1, enable_model_summary=False, num_sanity_val_steps=0, **silent, **options)


@pytest.fixture
def make(reviews, few_reviews, tmp_path):
    """(module, data) with a cached reference; every part can be replaced."""

    def build(model=None, loss=None, rows=few_reviews, lr=1e-3, path=None, **data_options):
        data = PreferenceDataModule(reviews / "model", rows, **data_options)
        reference = CachedReference(path, cache_dir=tmp_path / "cache")
        module = DPOModule(
            model or str(reviews / "model"),
            loss or partial(losses.dpo, beta=0.1),
            reference,
            partial(torch.optim.AdamW, lr=lr),
        )
        return module, data

    return build


def stored(data):
    """All pairs of the only source."""
    (pairs,) = data.pairs().values()
    return pairs


def prepare(module, data, **options) -> int:
    """Join the reference and return the number of forward passes."""
    data.setup()
    run = trainer(**options)
    run.datamodule = data
    module.reference.prepare(module.policy, run)
    return module.reference.forwards


def test_cached_numbers_equal_those_of_a_frozen_copy(make, reviews):
    module, data = make()
    prepare(module, data)
    batch = data.train_pairs.select([7, 3, 40])
    copy = CopyReference()
    copy.bind(module.policy, load=None, scoring="auto")
    copy.prepare(module.policy, trainer())
    for cached, live in zip(module.reference(batch), copy(batch), strict=True):
        torch.testing.assert_close(cached.values, live.values, atol=1e-5, rtol=0)


def test_a_second_run_computes_nothing_whatever_its_beta_loss_lr_and_seed(make):
    assert prepare(*make()) > 0
    assert prepare(*make(loss=partial(losses.ipo, beta=0.5), lr=0.1, seed=3, batch_size=5)) == 0


def test_other_weights_tokens_or_precision_are_computed_anew(make, reviews, few_reviews, tmp_path):
    prepare(*make())
    torch.manual_seed(1)
    other = llama(vocab_size=90)
    assert prepare(*make(model=other)) > 0
    shorter = tmp_path / "shorter.jsonl"
    shorter.write_text("\n".join(few_reviews.read_text().splitlines()[:-1]))
    assert prepare(*make(rows=shorter)) > 0
    assert prepare(*make(max_length=12)) > 0
    assert prepare(*make(), precision="bf16-mixed") > 0
    assert prepare(*make(), precision="bf16-true") > 0


def test_the_manifest_describes_the_entry(make, tmp_path):
    prepare(*make())
    (manifest,) = (tmp_path / "cache").glob("*/manifest.json")
    content = json.loads(manifest.read_text())
    assert content["pairs"] == 48 and content["dtype"] == "float32" and content["precision"] == "32-true"
    assert {"weights", "token_ids", "config", "sha256", "created", "versions"} <= set(content)


@pytest.mark.parametrize("damage", ["flip", "cut", "remove", "garbage in the manifest"])
def test_a_damaged_entry_is_reported_and_computed_again(make, tmp_path, damage, caplog):
    module, data = make()
    prepare(module, data)
    (entry,) = (p for p in (tmp_path / "cache").iterdir() if p.is_dir())
    file = entry / "logps.safetensors"
    content = bytearray(file.read_bytes())
    if damage == "flip":
        content[-5] ^= 1
        file.write_bytes(content)
    elif damage == "cut":
        file.write_bytes(content[:-8])
    elif damage == "remove":
        file.unlink()
    else:
        (entry / "manifest.json").write_text("{")
    again, rows = make()
    assert prepare(again, rows) > 0 and "damaged" in caplog.text
    assert torch.equal(stored(rows).reference.chosen.values, stored(data).reference.chosen.values)
    assert prepare(*make()) == 0


@pytest.fixture
def small_parts(monkeypatch):
    """Parts of one forward pass over a few pairs."""
    monkeypatch.setattr(precompute, "FORWARD_TOKENS", 200)
    monkeypatch.setattr(precompute, "PART_BATCHES", 1)


def test_an_interrupted_computation_resumes_with_the_next_part(make, tmp_path, monkeypatch, small_parts):
    whole, rows = make()
    forwards = prepare(whole, rows)
    expected = stored(rows).reference
    shutil.rmtree(tmp_path / "cache")

    calls, right = [], Scorer.__call__

    def stop_at_the_fourth(self, batch):
        calls.append(batch)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return right(self, batch)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Scorer, "__call__", stop_at_the_fourth)
        prepare(*make())
    assert not list((tmp_path / "cache").glob("*/manifest.json"))
    again, rows = make()
    assert prepare(again, rows) == forwards - 3
    assert torch.equal(stored(rows).reference.chosen.values, expected.chosen.values)
    assert torch.equal(stored(rows).reference.rejected.values, expected.rejected.values)
    assert not list((tmp_path / "cache").glob("*.parts"))


def test_a_damaged_part_is_computed_again(make, tmp_path, monkeypatch, small_parts):
    module, data = make()
    forwards, expected = prepare(module, data), stored(data).reference.chosen.values
    shutil.rmtree(tmp_path / "cache")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(store, "_write", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        prepare(*make())
    part = sorted((tmp_path / "cache").glob("*.parts/*.safetensors"))[1]
    content = bytearray(part.read_bytes())
    content[-2] ^= 1
    part.write_bytes(content)
    again, rows = make()
    assert forwards > 3 and prepare(again, rows) == 1
    assert torch.equal(stored(rows).reference.chosen.values, expected)


def test_parts_with_other_rows_are_computed_again(make, tmp_path, monkeypatch, small_parts):
    """Another layout, or another size of forward passes, puts other rows into a part of the same number."""
    module, data = make()
    prepare(module, data)
    expected = stored(data).reference.chosen.values
    shutil.rmtree(tmp_path / "cache")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(store, "_write", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        prepare(*make())
    again, rows = make()
    again.reference._scoring = "padded"
    assert prepare(again, rows) > 3
    torch.testing.assert_close(stored(rows).reference.chosen.values, expected, atol=1e-5, rtol=0)


def test_several_ranks_divide_the_work_and_read_one_entry(make, tmp_path, small_parts):
    """Two threads stand in for two ranks."""
    module, data = make()
    prepare(module, data)
    pairs, expected = stored(data), stored(data).reference.chosen.values
    barrier, sent, shares, found = threading.Barrier(2, timeout=20), [], {0: [], 1: []}, {}

    def run(rank):
        def broadcast(value):
            if rank == 0:
                sent.append(value)
            barrier.wait()
            return sent[-1]

        ranks = SimpleNamespace(global_rank=rank, world_size=2, broadcast=broadcast, barrier=barrier.wait)
        scorer = Scorer(deepcopy(module.policy))
        work = precompute.Precomputation(scorer, pairs, "train")

        def compute(rows):
            shares[rank].append(tuple(rows))
            with torch.no_grad():
                return work(rows)

        found[rank] = store.ReferenceStore(tmp_path / "ranks").get({"key": 1}, pairs, work.parts, compute, ranks)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert abs(len(shares[0]) - len(shares[1])) <= 1
    assert sorted(i for share in shares.values() for rows in share for i in rows) == list(range(48))
    assert all(torch.equal(logps.chosen.values, expected) for logps in found.values())


def test_pairs_of_one_prompt_are_neighbours_and_no_forward_pass_exceeds_forward_tokens(monkeypatch):
    monkeypatch.setattr(precompute, "FORWARD_TOKENS", 60)
    pairs = tree_pairs(20)
    work = precompute.Precomputation(Scorer(llama()), pairs, "train")
    rows = [i for part in work.parts for i in part]
    prompts = [tuple(pairs.prompt.row(i).tolist()) for i in rows]
    assert len([1 for a, b in pairwise(prompts) if a != b]) == len(set(prompts)) - 1
    for batch in work._batches(rows):
        tokens = sum(len(getattr(pairs, side).row(i)) for i in batch for side in ("prompt", "chosen", "rejected"))
        assert tokens <= 60 or len(batch) == 1


def test_values_of_another_reference_are_replaced(make):
    module, data = make()
    prepare(module, data)
    first = stored(data).reference.chosen.values
    other, _ = make(model=llama(vocab_size=90))
    assert prepare(other, data) > 0
    assert not torch.allclose(first, stored(data).reference.chosen.values)


def test_new_rows_are_refused_once_the_policy_has_been_trained(make):
    module, data = make()
    trainer().fit(module, datamodule=data)
    _, fresh = make(max_length=12)
    with pytest.raises(ValueError, match="has been trained since; type reference.path="):
        prepare(module, fresh)


def test_a_reference_with_a_path_gives_the_numbers_of_that_model(make, tmp_path):
    reference = llama(seed=5, vocab_size=90)
    reference.save_pretrained(tmp_path / "reference")
    module, data = make(path=str(tmp_path / "reference"))
    prepare(module, data)
    batch = data.train_pairs.select([0, 1])
    with torch.no_grad():
        expected = Scorer(reference)(batch).chosen.values
    torch.testing.assert_close(module.reference(batch).chosen.values, expected, atol=1e-5, rtol=0)


def test_no_second_model_is_in_memory_while_training(make):
    module, _ = make()
    assert not list(module.reference.parameters())


def test_live_scores_with_the_start_and_refuses_other_weights_in_its_folder(make, reviews):
    module, data = make()
    prepare(module, data)
    run = trainer()
    batch = data.train_pairs.select([0, 1])
    with torch.no_grad():
        start = Scorer(module.policy)(batch).chosen.values
        module.policy.lm_head.weight.mul_(1.5)
        with module.reference.live(run) as scorer:
            assert torch.equal(scorer(batch).chosen.values, start)
    module.reference._weights = "others"
    with pytest.raises(ValueError, match="were computed with other weights"), module.reference.live(run):
        pass


def test_a_cached_reference_without_a_datamodule_names_the_alternative(make):
    module, data = make()
    data.setup()
    with pytest.raises(ValueError, match="CopyReference"):
        trainer().fit(module, train_dataloaders=data.train_dataloader())


def test_a_copy_is_frozen_and_cast_with_the_policy(reviews, few_reviews):
    data = PreferenceDataModule(reviews / "model", few_reviews, batch_size=16)
    module = DPOModule(
        reviews / "model", partial(losses.dpo, beta=0.1), CopyReference(), partial(torch.optim.AdamW, lr=1e-2)
    )
    before = module.policy.lm_head.weight.clone()
    run = trainer(precision="bf16-true")
    run.fit(module, datamodule=data)
    assert module.reference.model.dtype == torch.bfloat16 == module.policy.dtype
    assert torch.equal(module.reference.model.lm_head.weight, before.bfloat16())
    assert not torch.equal(module.policy.lm_head.weight, module.reference.model.lm_head.weight)
    optimized = {id(p) for group in run.optimizers[0].param_groups for p in group["params"]}
    assert not optimized & {id(p) for p in module.reference.parameters()}


def test_a_data_module_of_ones_own_needs_pairs_for_a_cache(make, tmp_path):
    """With `pairs`, it is all that the cache needs."""
    module, data = make()
    data.setup()
    pairs = stored(data)

    class Own(L.LightningDataModule):
        def train_dataloader(self):
            return torch.utils.data.DataLoader(range(8), batch_size=4, collate_fn=pairs.select)

    with pytest.raises(ValueError, match=r"but Own has no method pairs\(\) -> \{name: PairBatch\}; add one") as error:
        trainer().fit(module, datamodule=Own())
    assert "\n" not in str(error.value)
    Own.pairs = lambda self: {"mine": pairs}
    trainer().fit(module, datamodule=Own())
    assert module.reference.forwards > 0

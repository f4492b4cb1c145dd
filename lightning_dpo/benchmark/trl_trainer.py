"""TRL's own DPOTrainer as a contender (pip install 'lightning-dpo[bench]'), on the same pairs and weights."""

import tempfile
from collections.abc import Collection
from typing import Any
from unittest.mock import patch

import torch

from lightning_dpo.batch import PairBatch
from lightning_dpo.benchmark.contender import BETA, Contender


class TrlTrainer(Contender):
    """`DPOTrainer.training_step` with TRL's collator.

    Args:
        as_on_gpu: run the head on response positions only, as TRL does on a GPU. As shipped, TRL runs it on all
            positions on a CPU.
    """

    def __init__(self, build, options: Collection[str], live: bool, as_on_gpu: bool):
        super().__init__(build, options, live)
        from datasets import Dataset
        from trl.trainer import utils
        from trl.trainer.dpo_config import DPOConfig
        from trl.trainer.dpo_trainer import DPOTrainer

        self.as_on_gpu, self.utils = as_on_gpu, utils
        on_cpu = self.model.device.type == "cpu"
        settings = DPOConfig(
            output_dir=tempfile.mkdtemp(), beta=BETA, bf16="autocast" in options, use_cpu=on_cpu, report_to="none",
            gradient_checkpointing="checkpointing" in options, max_length=None, loss_type=["sigmoid"],
            logging_steps=10**9,
        )  # fmt: skip
        rows = Dataset.from_dict({"prompt": ["a"], "chosen": ["b"], "rejected": ["c"]})
        self.trainer = DPOTrainer(
            model=self.model,
            ref_model=self.reference or build(),
            args=settings,
            train_dataset=rows,
            processing_class=_tokenizer(),
        )
        self.trainer.precompute_ref_logps = not live
        self.trainer.current_gradient_accumulation_steps = 1  # as train() would set it
        self.inputs: dict[int, dict[str, Any]] = {}

    def prepare(self, batches: list[PairBatch]) -> None:
        self.inputs = {id(batch): self._collated(batch) for batch in batches}
        if self.live:
            return
        with self._compact(), torch.no_grad():
            for inputs in self.inputs.values():
                chosen, rejected = self.trainer.compute_ref_log_probs(self.trainer.ref_model, inputs)
                inputs |= {"ref_chosen_logps": chosen, "ref_rejected_logps": rejected}

    def _collated(self, batch: PairBatch) -> dict[str, Any]:
        rows = zip(*(getattr(batch, side).rows() for side in ("prompt", "chosen", "rejected")), strict=True)
        names = ("prompt_ids", "chosen_ids", "rejected_ids")
        examples: list[dict[str, Any]] = [dict(zip(names, (ids.tolist() for ids in row), strict=True)) for row in rows]
        return {name: t.to(self.model.device) for name, t in self.trainer.data_collator(examples).items()}

    def backward(self, batch: PairBatch) -> torch.Tensor:
        with self._compact():
            return self.trainer.training_step(self.model, dict(self.inputs[id(batch)]), len(batch))

    def _compact(self):
        return patch.object(self.utils, "_use_triton", (lambda _: True) if self.as_on_gpu else self.utils._use_triton)


def _tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"<end>": 0, "a": 1, "b": 2, "c": 3}, unk_token="<end>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>", pad_token="<end>")

"""Completions during validation: their KL to the reference, their scores and their texts."""

import json
from collections.abc import Callable, Iterable, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Annotated, Any

import lightning as L
import torch
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_only

from lightning_dpo.data.sets import PairSet
from lightning_dpo.files import LineFile
from lightning_dpo.models import positions
from lightning_dpo.module import DPOModule
from lightning_dpo.samples.agreement import generate_as_scored
from lightning_dpo.samples.generate import Batches
from lightning_dpo.samples.measures import Completion, distinct_prompts, named_scores, summarise, token_logps


class SampleCallback(L.Callback):
    """Draws completions at temperature 1 for the distinct prompts of the validation set, in turn.

    Logs `val/kl`, the mean of log π(y) - log π_ref(y) over the completions y (an unbiased estimate of the KL divergence
    in nats per sequence) with its standard error `val/kl_se`, `val/samples/length` in tokens, and `val/samples/<name>`
    for each score. Texts go to `samples.jsonl` and, with W&B, to a table.

    Args:
        n: number of completions; 0 draws none. With fewer prompts than this, prompts repeat.
        every: draw at every this many validations, and at the last one.
        max_new_tokens: longer completions are truncated.
        scorer: texts of the completions -> one number each (logged as `reward`), or a dict of such lists by name.
        seed: of the draws; the same at each validation, so that completions are comparable.
        output_dir: folder of `samples.jsonl`; None writes no file.
    """

    def __init__(
        self,
        n: Annotated[int, "[0, inf)"] = 64,
        every: Annotated[int, "[1, inf)"] = 1,
        max_new_tokens: Annotated[int, "[1, inf)"] = 128,
        scorer: Callable[[list[str]], Any] | None = None,
        seed: int = 0,
        output_dir: Path | str | None = None,
    ):
        self.n, self.every, self.max_new_tokens, self.scorer, self.seed = n, every, max_new_tokens, scorer, seed
        self.file = None if output_dir is None else LineFile(Path(output_dir) / "samples.jsonl")
        self.validations = 0
        self.batches: Batches | None = None
        """Which prompts share a batch; the first draw decides."""
        self.first: list[Completion] = []
        self.last: list[Completion] = []

    @rank_zero_only
    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: DPOModule) -> None:  # type: ignore[override]
        self.validations += 1
        last = trainer.state.fn != TrainerFn.FITTING or trainer.global_step >= trainer.estimated_stepping_batches
        if self.n == 0 or ((self.validations - 1) % self.every and not last):
            return
        self.last = self.draw(trainer, pl_module)
        self.first = self.first or self.last
        pl_module.log_dict({f"val/{name}": value for name, value in summarise(self.last).items()}, rank_zero_only=True)
        self._write(trainer)

    def state_dict(self) -> dict[str, Any]:
        return {
            "validations": self.validations,
            "batches": self.batches,
            "lines": self.file.lines if self.file else 0,
            "first": [completion._asdict() for completion in self.first],
            "last": [completion._asdict() for completion in self.last],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Also truncates `samples.jsonl` to the lines of this state."""
        self.validations, self.batches = state_dict["validations"], state_dict.get("batches")
        self.first, self.last = ([Completion(**c) for c in state_dict[name]] for name in ("first", "last"))
        if self.file is not None:
            self.file.cut(state_dict["lines"])

    def draw(self, trainer: L.Trainer, module: DPOModule) -> list[Completion]:
        """Completions of the current policy."""
        datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
        prompts = self._prompts(module, datamodule.val_sets.values())
        settings = {"max_new_tokens": self.max_new_tokens, "stop_ids": datamodule.stop_ids, "seed": self.seed}
        with torch.no_grad(), trainer.precision_plugin.forward_context():
            draws, scored, self.batches = generate_as_scored(module.scorer, prompts, self.batches, **settings)
            responses, logps = [draw.ids for draw in draws], scored.sum().tolist()
            ref_logps: Sequence[float | None] = [None] * len(prompts)
            if module.reference is not None:
                with module.reference.live(trainer) as scorer:
                    ref_logps = token_logps(scorer, prompts, responses).sum().tolist()
        decode = datamodule.tokenizer.decode
        texts = [decode(ids, skip_special_tokens=True) for ids in responses]
        named = named_scores(self.scorer, texts)
        scores = [{name: values[i] for name, values in named.items()} for i in range(len(texts))]
        tokens = [len(ids) for ids in responses]
        columns = zip(map(decode, prompts), texts, tokens, logps, ref_logps, scores, strict=True)
        return [Completion(*column) for column in columns]

    def _prompts(self, module: DPOModule, sets: Iterable[PairSet]) -> list[list[int]]:
        limit = positions(module.policy.config)
        longest = float("inf") if limit is None else limit - self.max_new_tokens
        prompts = list(islice((p for p in distinct_prompts(sets) if len(p) <= longest), self.n))
        if not prompts:
            raise ValueError(
                f"samples.max_new_tokens={self.max_new_tokens}: no validation prompt leaves that much room in the "
                f"model's {limit} positions; type a smaller number, or samples.n=0 for no completions"
            )
        return list(islice(cycle(prompts), self.n))

    def _write(self, trainer: L.Trainer) -> None:
        rows = [{"step": trainer.global_step, **c._asdict()} for c in self.last]
        for row in rows:
            row.update(row.pop("scores"))
        if self.file is not None:
            self.file.append(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        for logger in trainer.loggers:
            if hasattr(logger, "log_table"):
                columns, data = list(rows[0]), [list(row.values()) for row in rows]
                logger.log_table("val/samples", columns=columns, data=data, step=trainer.global_step)  # type: ignore[attr-defined]

"""Penalties for ``transformers.Trainer``, as callbacks. Needs the extra ``models``."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any, Unpack

from torch.optim import Optimizer
from torch.utils.data import DataLoader
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from clbench.errors import StrategyError
from clbench.strategies import EWC
from clbench.strategies.argument_checks import Strength
from clbench.strategies.ewc import FisherOptions
from clbench.strategies.measured import ImportanceStrategy
from clbench.strategies.step_size import check_step_size


class PenaltyCallback(TrainerCallback):
    """Protect earlier tasks by the penalty of a strategy, in the training loop of ``transformers.Trainer``.

    The gradient of the penalty is added before each step of the optimiser, and the importance is measured when a training ends.
    Use one object for all tasks. Its strategy keeps the penalty, and its ``state_dict`` can be saved with ``torch.save``.

    Args:
        strategy: ``EWC``, ``OnlineEWC`` or ``MAS``. ``data`` is the training set of the Trainer, or batches.

    Raises:
        ConfigError: The strategy measures no importance. When a training begins, an argument of the Trainer does not allow an
            exact penalty (``max_grad_norm`` other than 0, fp16, DeepSpeed, FSDP, several processes), or the model cannot be
            measured.

    Example:
        >>> from clbench import MAS
        >>> PenaltyCallback(MAS(lam=1.0)).strategy.lam
        1.0
    """

    def __init__(self, strategy: ImportanceStrategy) -> None:
        if not isinstance(strategy, ImportanceStrategy):
            raise StrategyError(f"strategy: expected EWC, OnlineEWC or MAS, got {type(strategy).__name__}")
        if strategy.data != "train" and (isinstance(strategy.data, str) or callable(strategy.data)):
            raise StrategyError(
                f"data={strategy.data}: expected train or batches, because transformers.Trainer has no tasks. Pass data=LOADER"
            )
        self.strategy = strategy

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **parts: Any
    ) -> None:
        refuse_what_misses_the_penalty(args)
        model, optimizer = parts["model"], parts["optimizer"]
        self.strategy.begin(model, resumed=state.global_step > 0)
        if self.strategy.penalty is None:
            self.strategy.check_module(model, next(iter(self._examples(args, parts["train_dataloader"]))))
        for _, text in check_step_size(self.strategy.penalty_state(), [optimizer]):
            warnings.warn(text, stacklevel=2)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **parts: Any
    ) -> None:
        optimizer: Optimizer = parts["optimizer"]
        self.strategy.add_gradients(optimizer)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **parts: Any) -> None:
        if self.strategy.consolidate_at == "fit":
            self.strategy.consolidate(parts["model"], self._examples(args, parts["train_dataloader"]))

    def _examples(self, args: TrainingArguments, loader: DataLoader[Any]) -> Iterable[Any]:
        """Return the batches to measure on: those of the training set, in its order."""
        if not isinstance(self.strategy.data, str):
            return self.strategy.data  # type: ignore[return-value]  # functions are refused
        return DataLoader(loader.dataset, batch_size=args.train_batch_size, collate_fn=loader.collate_fn)


class EWCCallback(PenaltyCallback):
    """Elastic weight consolidation for ``transformers.Trainer``.

    Args:
        lam: Strength of the penalty, >= 0, or a list with one per task.
        options: Options of ``EWC``, such as ``fisher``, ``samples`` and ``outputs``.

    Raises:
        ConfigError: See ``EWC`` and ``PenaltyCallback``.

    Example:
        >>> EWCCallback(lam=100.0, fisher="empirical").strategy.lam
        100.0
    """

    def __init__(self, lam: Strength = 1e3, **options: Unpack[FisherOptions]) -> None:
        super().__init__(EWC(lam, **options))


def refuse_what_misses_the_penalty(args: TrainingArguments) -> None:
    """Refuse arguments of the Trainer with which the penalty would be wrong or missing.

    Raises:
        ConfigError: There is one.
    """
    if args.max_grad_norm:
        raise StrategyError(
            f"max_grad_norm={args.max_grad_norm}: expected 0, because transformers.Trainer clips the gradients before the "
            "penalty can be added. Use TrainingArguments(max_grad_norm=0)"
        )
    if args.fp16:
        raise StrategyError(
            "fp16=True: expected False, because gradients are still scaled when the penalty is added. Use bf16=True"
        )
    for name in ("deepspeed", "fsdp"):
        if getattr(args, name):
            raise StrategyError(
                f"{name}: expected None, because it splits parameters over devices. Train without {name}"
            )
    if (processes := max(args.world_size, args.n_gpu)) > 1:
        raise StrategyError(
            f"{processes} processes or GPUs: expected 1, because each would measure its own importance. Use one, or clbench "
            "with Lightning and strategy='ddp'"
        )
    if any(word in str(args.optim).lower() for word in ("lomo", "layerwise")):
        raise StrategyError(
            f"optim={args.optim}: expected an optimizer that steps after the backward pass. This one steps during it, before "
            "the penalty is added. Use optim='adamw_torch'"
        )

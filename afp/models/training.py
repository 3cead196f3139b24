"""The one training loop, on accelerate: it knows a loss and a recipe, and nothing of the model."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset
from tqdm.auto import tqdm

from ..errors import AfpError, ModelError

STATE_FILE = "training.pth"


@dataclass(frozen=True)
class Recipe:
    """How to train: optimizer, steps and the learning rate at each of them.

    The rate climbs for `warmup_steps` steps (or `warmup_epochs` epochs) from `warmup_lr` to `lr` in a
    straight line (`warmup="linear"`) or waits at `warmup_lr` (`"constant"`, CoOp's way); then it follows
    half a cosine to 0, step by step (`schedule="cosine"`) or epoch by epoch (`"cosine-epoch"`), or stays
    (`"constant"`). `momentum` belongs to SGD alone.
    """

    lr: float
    epochs: int
    batch_size: int
    optimizer: str = "adamw"
    weight_decay: float = 0.0
    momentum: float = 0.9
    schedule: str = "cosine"
    warmup: str = "linear"
    warmup_steps: int = 0
    warmup_epochs: int = 0
    warmup_lr: float = 0.0
    seed: int = 0

    def __post_init__(self):
        for field, allowed in (
            ("optimizer", ("adamw", "sgd")),
            ("schedule", ("cosine", "cosine-epoch", "constant")),
            ("warmup", ("linear", "constant")),
        ):
            if getattr(self, field) not in allowed:
                raise AfpError(f"Recipe.{field} is {getattr(self, field)!r}, expected one of {allowed}")
        for field in ("lr", "epochs", "batch_size"):
            if not getattr(self, field) > 0:
                raise AfpError(f"Recipe.{field} is {getattr(self, field)!r}, expected a number above 0")
        for field in ("weight_decay", "momentum", "warmup_steps", "warmup_epochs", "warmup_lr"):
            if not getattr(self, field) >= 0:
                raise AfpError(f"Recipe.{field} is {getattr(self, field)!r}, expected 0 or more")
        if self.warmup_steps and self.warmup_epochs:
            raise AfpError("Recipe.warmup_steps and Recipe.warmup_epochs are both set, expected one of them")

    def lr_at(self, step: int, steps_per_epoch: int) -> float:
        """Learning rate of optimizer step `step` (0 is the first)."""
        total = self.epochs * steps_per_epoch
        warmup = min(self.warmup_steps or self.warmup_epochs * steps_per_epoch, total)
        if step < warmup:
            way = step / warmup if self.warmup == "linear" else 0.0
            return self.warmup_lr + (self.lr - self.warmup_lr) * way
        if self.schedule == "constant":
            return self.lr
        if self.schedule == "cosine-epoch":  # the same for all steps of an epoch
            return self.lr * 0.5 * (1 + math.cos(math.pi * (step // steps_per_epoch) / self.epochs))
        return self.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(total - warmup, 1)))


def train(
    model: nn.Module,
    dataset: Dataset,
    loss: Callable[[nn.Module, object], torch.Tensor],
    recipe: Recipe,
    *,
    validate: Callable[[nn.Module], float] | None = None,
    checkpoint: str | Path | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Train the parameters of `model` that require gradients, in place.

    `dataset` is any map-style dataset; its default-collated batches go to `loss(model, batch)`, which
    returns a scalar. With `validate(model)` (higher is better, called after each epoch in evaluation mode,
    without gradients) the parameters of the best epoch are kept, else the last ones. Every epoch draws its
    order and its dropout from (seed, epoch) alone, so that a run which resumes from `checkpoint` equals an
    uninterrupted one.

    Returns one row a step: `step`, `epoch`, `lr`, `loss`, `validation` (on an epoch's last step, else NaN),
    `seconds`.

    Raises `ModelError` if nothing is trainable, the loss is not finite, or `checkpoint` holds another run.
    """
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not trained:
        raise ModelError("the model has no parameter that requires a gradient, expected at least one")
    if len(dataset) == 0:
        raise ModelError("the training set has 0 examples, expected at least one")

    accelerator = Accelerator()
    optimizer = _optimizer(list(trained.values()), recipe)
    prepared, optimizer = accelerator.prepare(model, optimizer)
    steps_per_epoch = math.ceil(len(dataset) / recipe.batch_size)
    file = Path(checkpoint) / STATE_FILE if checkpoint is not None else None
    first_epoch, rows, best = _resume(file, trained, optimizer, recipe, len(dataset))

    bar = tqdm(
        total=recipe.epochs * steps_per_epoch,
        initial=first_epoch * steps_per_epoch,
        desc="training",
        unit="step",
        disable=not progress,
    )
    for epoch in range(first_epoch, recipe.epochs):
        set_seed(recipe.seed * 100_003 + epoch)
        order = torch.randperm(len(dataset)).tolist()
        loader = accelerator.prepare(DataLoader(Subset(dataset, order), recipe.batch_size))
        prepared.train()
        for i, batch in enumerate(loader):
            step, started = epoch * steps_per_epoch + i, time.perf_counter()
            lr = recipe.lr_at(step, steps_per_epoch)
            for group in optimizer.param_groups:
                group["lr"] = lr
            value = loss(prepared, batch)
            if not torch.isfinite(value):
                raise ModelError(
                    f"the loss is {value.item()} at step {step} (epoch {epoch}), learning rate {lr:g}:"
                    " lower the recipe's lr, or look for inputs that are not finite"
                )
            optimizer.zero_grad()
            accelerator.backward(value)
            optimizer.step()
            rows.append(
                {
                    "step": step,
                    "epoch": epoch,
                    "lr": lr,
                    "loss": value.item(),
                    "validation": math.nan,
                    "seconds": time.perf_counter() - started,
                }
            )
            bar.update()
            bar.set_postfix(loss=f"{value.item():.3f}", refresh=False)
        prepared.eval()
        if validate is not None:
            with torch.no_grad():
                quality = float(validate(prepared))
            rows[-1]["validation"] = quality
            if best is None or quality > best["validation"]:
                best = {"validation": quality, "parameters": _copy(trained)}
        if file is not None and accelerator.is_main_process:
            _save(file, trained, optimizer, recipe, len(dataset), rows, best)
    bar.close()
    prepared.eval()
    if best is not None:
        _restore(trained, best["parameters"])
    return pd.DataFrame(rows)


def _optimizer(parameters: list[nn.Parameter], recipe: Recipe) -> torch.optim.Optimizer:
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(
            parameters, recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay
        )
    return torch.optim.AdamW(parameters, recipe.lr, weight_decay=recipe.weight_decay)


def _copy(trained: dict[str, nn.Parameter]) -> dict[str, torch.Tensor]:
    return {name: p.detach().cpu().clone() for name, p in trained.items()}


@torch.no_grad()
def _restore(trained: dict[str, nn.Parameter], values: dict[str, torch.Tensor]) -> None:
    for name, p in trained.items():
        p.copy_(values[name])


def _identity(trained: dict[str, nn.Parameter], recipe: Recipe, n: int) -> dict:
    """What a checkpoint must share with the run that resumes from it."""
    return {"recipe": asdict(recipe), "examples": n, "shapes": {k: list(p.shape) for k, p in trained.items()}}


def _save(file, trained, optimizer, recipe, n, rows, best) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    state = {
        "identity": _identity(trained, recipe, n),
        "parameters": _copy(trained),
        "optimizer": optimizer.state_dict(),
        "rows": rows,
        "best": best,
    }
    partial = file.with_suffix(".partial")
    torch.save(state, partial)
    os.replace(partial, file)  # a run that is stopped while it writes leaves the epoch before


def _resume(file, trained, optimizer, recipe, n) -> tuple[int, list[dict], dict | None]:
    if file is None or not file.exists():
        return 0, [], None
    state = torch.load(file, map_location="cpu", weights_only=True)
    expected = _identity(trained, recipe, n)
    for key, value in expected.items():
        if state["identity"][key] != value:
            raise ModelError(
                f"{file}: was made by another run: its {key} is {state['identity'][key]},"
                f" expected {value}; name another checkpoint folder"
            )
    _restore(trained, state["parameters"])
    optimizer.load_state_dict(state["optimizer"])
    return state["rows"][-1]["epoch"] + 1, state["rows"], state["best"]

"""The one training loop, on accelerate: it knows a loss and a recipe, and nothing of the model."""

from __future__ import annotations

import errno
import logging
import math
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from accelerate import Accelerator  # type: ignore[import-untyped]
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers  # type: ignore[import-untyped]
from accelerate.utils import set_seed  # type: ignore[import-untyped]
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from ..errors import AfpError, ModelError
from ..files import written_whole
from ..paths import runs_dir
from . import processes
from .checkpoints import damaged_part

STATE_FILE = "training.pth"
SAVE_EVERY = 500  # steps, and each epoch's end: how often a checkpoint is written
_tracker: str | None = None


@contextmanager
def logged_with(tracker: str) -> Iterator[None]:
    """Within it, each training tells its steps to one of accelerate's trackers too, as it takes them.

    They are named by the training's checkpoint folder, which for a run is its ``identity``; what is written to the
    disk lies in ``runs/logs``.

    Args:
        tracker: such as ``tensorboard`` or ``wandb``.
    Raises:
        AfpError: accelerate does not know it, or its package is not installed.
    """
    global _tracker
    if tracker not in LOGGER_TYPE_TO_CLASS:
        raise AfpError(f"tracker {tracker!r}: expected one of {', '.join(LOGGER_TYPE_TO_CLASS)}")
    if tracker not in map(str, get_available_trackers()):
        raise AfpError(f"tracker {tracker}: its package is not installed; `pip install {tracker}` brings it")
    _tracker, before = tracker, _tracker
    try:
        yield
    finally:
        _tracker = before


@dataclass(frozen=True)
class Recipe:
    """How to train: optimizer, steps and the learning rate at each of them.

    The rate climbs for `warmup_steps` steps (or `warmup_epochs` epochs) from `warmup_lr` to `lr` in a
    straight line (`warmup="linear"`) or waits at `warmup_lr` (`"constant"`, CoOp's way); then it follows
    half a cosine to 0, step by step (`schedule="cosine"`) or epoch by epoch (`"cosine-epoch"`, which counts
    from the end of `warmup_epochs` and would reach 0 after `epochs` more, as Dassl's), or stays (`"constant"`).
    `momentum` belongs to SGD alone.
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
                raise AfpError(f"recipe: {field} is {getattr(self, field)!r}, expected one of {allowed}")
        for field in ("lr", "epochs", "batch_size"):
            if not 0 < getattr(self, field) < 2**31:
                raise AfpError(
                    f"recipe: {field} is {getattr(self, field)!r}, expected a number above 0, under 2^31"
                )
        if not 0 <= self.seed < 2**31:
            raise AfpError(f"recipe: seed is {self.seed!r}, expected 0 or more, under 2^31")
        for field in ("weight_decay", "momentum", "warmup_steps", "warmup_epochs", "warmup_lr"):
            if not getattr(self, field) >= 0:
                raise AfpError(f"recipe: {field} is {getattr(self, field)!r}, expected 0 or more")
        if self.warmup_steps and self.warmup_epochs:
            raise AfpError("recipe: warmup_steps and warmup_epochs are both set, expected one of them")

    def lr_at(self, step: int, steps_per_epoch: int) -> float:
        """Learning rate of optimizer step `step` (0 is the first)."""
        total = self.epochs * steps_per_epoch
        warmup = min(self.warmup_steps or self.warmup_epochs * steps_per_epoch, total)
        if step < warmup:
            way = step / warmup if self.warmup == "linear" else 0.0
            return self.warmup_lr + (self.lr - self.warmup_lr) * way
        if self.schedule == "constant":
            return self.lr
        way = (step - warmup) / max(total - warmup, 1)
        if self.schedule == "cosine-epoch":  # the same for all steps of an epoch
            way = (step // steps_per_epoch - self.warmup_epochs) / self.epochs
        return self.lr * 0.5 * (1 + math.cos(math.pi * way))

    def make_optimizer(self, parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
        """The optimizer, at a learning rate of 1: `lr_at` gives the factor of every step."""
        if self.optimizer == "sgd":
            decay = self.weight_decay
            return torch.optim.SGD(parameters, lr=1.0, momentum=self.momentum, weight_decay=decay)
        return torch.optim.AdamW(parameters, lr=1.0, weight_decay=self.weight_decay)


def train(
    model: nn.Module,
    dataset: Dataset,
    loss: Callable[[nn.Module, Any], tuple[torch.Tensor, float]],
    recipe: Recipe,
    *,
    validation: Dataset | None = None,
    checkpoint: str | Path | None = None,
    num_workers: int = 0,
    progress: bool = True,
) -> pd.DataFrame:
    """Train the parameters of `model` that require gradients, in place.

    Every epoch draws its order and its dropout from (seed, epoch) alone, and starts to draw anew every
    `SAVE_EVERY` steps: a run that was stopped and resumes from `checkpoint` equals an uninterrupted one.
    Several processes (see `afp.models.processes`) share each batch, and end with the parameters that one would.

    Args:
        dataset: map-style; its default-collated batches go to `loss`. One with a `set_epoch` is told the
            epoch, as random views need it.
        loss: `loss(model, batch)` is the sum of the batch's losses, and how many they are: the loss is their mean.
            `model` is the prepared one, and must be called.
        validation: its loss is measured after each epoch in evaluation mode, without gradients. The parameters
            of the best epoch are kept; without it, the last ones.
        checkpoint: folder of the state of a run that may be stopped.
        num_workers: processes that read the data set.
    Returns:
        One row a step: `step`, `epoch`, `lr`, `loss`, `validation` (minus its loss, on an epoch's last step; else
        NaN), `seconds`.
    Raises:
        ModelError: nothing is trainable, the loss is not finite, or `checkpoint` holds another run.
    """
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not trained:
        raise ModelError("the model has no parameter that requires a gradient, expected at least one")
    n, size = len(dataset), recipe.batch_size  # type: ignore[arg-type]
    if n == 0:
        raise ModelError("the training set has 0 examples, expected at least one")
    processes.join()
    accelerator = Accelerator(log_with=_tracker, project_dir=runs_dir() / "logs")
    accelerator.init_trackers(Path(checkpoint or "training").name, asdict(recipe))
    raw = recipe.make_optimizer(list(trained.values()))
    prepared, optimizer = accelerator.prepare(model, raw)
    steps = math.ceil(n / size)
    file = Path(checkpoint) / STATE_FILE if checkpoint is not None else None
    # What a checkpoint must share with the run that resumes from it.
    shapes = {name: list(p.shape) for name, p in trained.items()}
    identity = {"recipe": asdict(recipe), "examples": n, "shapes": shapes}
    rows, best = _resume(file, identity, trained, raw)
    schedule = LambdaLR(raw, lambda step: recipe.lr_at(step, steps), last_epoch=len(rows) - 1)
    reader = {"num_workers": num_workers, "pin_memory": accelerator.device.type == "cuda"}

    def save() -> None:
        if file is not None and accelerator.is_main_process:
            state = {"identity": identity, "parameters": _copy(trained), "optimizer": raw.state_dict()}
            with written_whole(file) as partial:
                try:
                    torch.save(state | {"rows": rows, "best": best}, partial)
                except RuntimeError as error:  # torch's own, where the disk is full
                    raise OSError(errno.EIO, str(error).splitlines()[0], str(file)) from error

    def measured(batch: Any, counts: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """This process's part of the loss; and sum and number of all processes' losses, (2,)."""
        total, number = loss(prepared, batch)
        if not counts:
            total, number = total * 0, 0  # a gradient of 0, which all processes take part in
        both = torch.stack([total.detach(), total.new_tensor(number)])
        return total, accelerator.reduce(both, "sum")

    bar = tqdm(
        total=recipe.epochs * steps, initial=len(rows), desc="training", unit="step", disable=not progress
    )
    for epoch in range(len(rows) // steps, recipe.epochs):
        seed = recipe.seed * 100_003 + epoch
        set_seed(seed)
        order = torch.randperm(n).tolist()
        if hasattr(dataset, "set_epoch"):
            dataset.set_epoch(epoch)
        done = len(rows) - epoch * steps
        own, counts = _own_part(order, size)
        loader: DataLoader = DataLoader(dataset, batch_sampler=own[done:], **reader)
        if processes.rank():  # not the dropout of the first process
            set_seed(seed + processes.rank() * 10**9)
        prepared.train()
        for i, batch in enumerate(loader, start=done):
            if i and i % SAVE_EVERY == 0:
                set_seed(seed + 1_000_003 * i + processes.rank() * 10**9)
            started, lr = time.perf_counter(), schedule.get_last_lr()[0]
            total, (summed, number) = measured(batch, counts[i])
            mean = (summed / number).item()
            if not math.isfinite(mean):
                raise ModelError(
                    f"the loss is {mean} at step {len(rows)} (epoch {epoch}), learning rate {lr:g}:"
                    " lower the recipe's lr, or look for inputs that are not finite"
                )
            optimizer.zero_grad()
            # Gradients are averaged over the processes.
            accelerator.backward(total / (number / processes.count()))
            optimizer.step()
            schedule.step()
            seconds = time.perf_counter() - started
            rows.append(
                {
                    "step": len(rows),
                    "epoch": epoch,
                    "lr": lr,
                    "loss": mean,
                    "validation": math.nan,
                    "seconds": seconds,
                }
            )
            accelerator.log({"loss": mean, "lr": lr}, step=len(rows) - 1)
            bar.update()
            bar.set_postfix(loss=f"{mean:.3f}", refresh=False)
            if (i + 1) % SAVE_EVERY == 0 and i + 1 < steps:
                save()
        prepared.eval()
        if validation is not None:
            own, counts = _own_part(list(range(len(validation))), size)  # type: ignore[arg-type]
            loader = DataLoader(validation, batch_sampler=own, **reader)
            with torch.no_grad():
                sums = [measured(batch, c)[1].cpu() for batch, c in zip(loader, counts, strict=True)]
            summed, number = torch.stack(sums).double().sum(0)
            rows[-1]["validation"] = quality = -(summed / number).item()
            accelerator.log({"validation": quality}, step=len(rows) - 1)
            if best is None or quality > best["validation"]:
                best = {"validation": quality, "parameters": _copy(trained)}
        save()
    bar.close()
    for tracker in accelerator.trackers:  # not `end_training`, which parts the processes
        tracker.finish()
    prepared.eval()
    if best is not None:
        _restore(trained, best["parameters"])
    return pd.DataFrame(rows)


def _own_part(order: list[int], size: int) -> tuple[list[list[int]], list[bool]]:
    """Rows of each batch that this process reads, and whether they count.

    All processes must take each step. One that a small batch leaves without a row takes the first, which counts 0.
    """
    batches = [order[start : start + size] for start in range(0, len(order), size)]
    own = [batch[processes.rank() :: processes.count()] for batch in batches]
    return [part or batch[:1] for part, batch in zip(own, batches, strict=True)], list(map(bool, own))


def _copy(trained: dict[str, nn.Parameter]) -> dict[str, torch.Tensor]:
    return {name: p.detach().cpu().clone() for name, p in trained.items()}


@torch.no_grad()
def _restore(trained: dict[str, nn.Parameter], values: dict[str, torch.Tensor]) -> None:
    for name, p in trained.items():
        p.copy_(values[name])


def _resume(
    file: Path | None, identity: dict, trained: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer
) -> tuple[list[dict], dict | None]:
    """Rows and best epoch of the run in the file, its state put back; of a new run where there is none."""
    state = _read_state(file) if file is not None and file.exists() else None
    if state is None:
        return [], None
    for key, value in identity.items():
        if state["identity"][key] != value:
            raise ModelError(
                f"{file}: was made by another run: its {key} is {state['identity'][key]},"
                f" expected {value}; name another checkpoint folder"
            )
    _restore(trained, state["parameters"])
    optimizer.load_state_dict(state["optimizer"])
    return state["rows"], state["best"]


def _read_state(file: Path) -> dict | None:
    """A checkpoint; none where it was cut or a bit of it flipped, which is said."""
    try:
        if zipfile.is_zipfile(file) and not damaged_part(file):
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception:  # a damaged file raises nearly anything
        pass
    logging.getLogger(__name__).warning("%s: damaged; the training begins anew", file)
    return None

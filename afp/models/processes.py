"""Several processes of one command, as `torchrun` starts them: each does a part, the first one writes."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from ..errors import AfpError, UnreadableImages

if TYPE_CHECKING:  # `afp --help` imports neither
    import numpy as np
    import pandas as pd

PATIENCE = timedelta(days=1)  # torch's own, half an hour, is short for one that waits for another's images
_WHOLE = "each process holds the whole model, which is not split"
_STEPS = "a step is a batch; a smaller batch_size, or for vlm-* --set gradient_checkpointing=true, takes less memory"
_MPI = "processes are started by torchrun, see docs/full-size.md"
# Environment variable that accelerate, or MPI, reads -> what it may be beside unset, and why nothing else.
SETTINGS = {
    "ACCELERATE_USE_FSDP": ("false", _WHOLE),
    "ACCELERATE_USE_DEEPSPEED": ("false", _WHOLE),
    "ACCELERATE_USE_MEGATRON_LM": ("false", _WHOLE),
    "ACCELERATE_USE_PARALLELISM_CONFIG": ("false", _WHOLE),
    "ACCELERATE_MIXED_PRECISION": ("no", "a detector has its own precision: --precision, or --set dtype=..."),
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": ("1", _STEPS),
    "ACCELERATE_DYNAMO_BACKEND": ("no", "nothing is compiled"),
    "OMPI_COMM_WORLD_SIZE": ("1", _MPI),
    "PMI_SIZE": ("1", _MPI),
}


def count() -> int:
    """How many processes share this command; 1 without `torchrun`."""
    return int(os.environ.get("WORLD_SIZE", 1))


def rank() -> int:
    """This process's number among them, from 0."""
    return int(os.environ.get("RANK", 0))


def join() -> None:
    """Meet the other processes, on this one's own device, before a model is loaded; once a process.

    Raises:
        AfpError: names a setting of the environment that accelerate would follow and afp would not.
    """
    for name, (allowed, reason) in SETTINGS.items():
        value = os.environ.get(name, "") or allowed
        started = reason is _MPI and "WORLD_SIZE" in os.environ  # torchrun, by MPI once a machine
        if value.lower() != allowed and not started:
            raise AfpError(f"{name} is {value}, expected {allowed} or none: {reason}")
    if count() > 1:
        import torch
        from accelerate import PartialState  # type: ignore[import-untyped]
        from accelerate.utils import parse_flag_from_env  # type: ignore[import-untyped]

        cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
        os.environ["ACCELERATE_USE_CPU"] = str(cpu).lower()  # without it, accelerate leaves CPUs alone
        PartialState(cpu, timeout=PATIENCE)


def gather(value: Any) -> list[Any]:
    """Every process's value, in all of them; whoever asks waits for the others."""
    if count() == 1:
        return [value]
    from accelerate.utils import gather_object

    join()
    return gather_object([value])


def by_rows(work: Callable[[pd.DataFrame], Any], frame: pd.DataFrame) -> np.ndarray:
    """``work(frame)``, of which each process does a part of the rows: those that lie together, as in a shard.

    Args:
        work: rows of the frame to an array with as many rows. It must not ask for the other processes.
        frame: the same in all processes.
    Returns:
        The same in all processes, in the frame's order.
    Raises:
        UnreadableImages: names the bad files that all processes found.
    """
    import numpy as np

    if count() == 1:
        return np.asarray(work(frame))
    start, stop = (len(frame) * i // count() for i in (rank(), rank() + 1))
    found, errors = None, {}
    try:
        found = np.asarray(work(frame.iloc[start:stop])) if start < stop else None
    except UnreadableImages as error:
        errors = error.errors
    parts = gather((found, errors))
    if errors := {file: reason for _, bad in parts for file, reason in bad.items()}:
        raise UnreadableImages(errors)
    return np.concatenate([found for found, _ in parts if found is not None])

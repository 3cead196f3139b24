"""Pseudo-words: new tokens of a text tower whose embedding rows are all that is trained.

AntifakePrompt trains one in InstructBLIP's Q-Former and one in its language model, CoOp trains M in CLIP's
text tower. Both are peft's trainable tokens here, so an adapter is a folder that plain peft loads.
"""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from peft import PeftModel, TrainableTokensConfig, get_peft_model
from peft.tuners.trainable_tokens import TrainableTokensLayer
from safetensors.torch import load_file
from tokenizers import AddedToken
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..errors import ModelError

ADAPTER = "default"


class RowLookup(TrainableTokensLayer):
    """peft's layer, but a forward reads its words from the frozen table and puts the trained rows in.

    peft copies the whole table first: 3 % of a forward of Vicuna-7B on a CPU core (205 ms of 6.8 s).
    """

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Embeddings (..., D) of token ids (...)."""
        if self.disable_adapters or self.merged or not isinstance(self.base_layer, nn.Embedding):
            return super().forward(x, *args, **kwargs)
        found = self.base_layer(x)
        is_row = x[..., None] == torch.tensor(self.token_indices[ADAPTER], device=x.device)
        rows = self.trainable_tokens_delta[ADAPTER].to(found.dtype)
        return torch.where(is_row.any(-1, keepdim=True), rows[is_row.int().argmax(-1)], found)


def pseudo_words(k: int) -> list[str]:
    """Names of k pseudo-words: `[*]` alone, or `[*1]` to `[*k]`.

    Raises `ModelError` if k is below 1.
    """
    if k < 1:
        raise ModelError(f"the number of vectors is {k}, expected at least 1")
    return ["[*]"] if k == 1 else [f"[*{i}]" for i in range(1, k + 1)]


def add_words(tokenizer: PreTrainedTokenizerBase, words: list[str]) -> list[int]:
    """Add `words` to `tokenizer` and return their ids, one each.

    Words that were added before keep their ids. Works for WordPiece, byte-level BPE and sentencepiece
    vocabularies: a space before the word belongs to it, so that none is left over as a token of its own.

    Raises `ModelError` if a word is one of the tokenizer's own, or does not become exactly one token.
    """
    added = tokenizer.get_added_vocab()
    for word in words:
        if (word in tokenizer.get_vocab() and word not in added) or word in tokenizer.all_special_tokens:
            raise ModelError(f"{word!r} is already in the vocabulary of the tokenizer, expected a new word")
    tokenizer.add_tokens(
        [AddedToken(w, lstrip=True, rstrip=False, normalized=False) for w in words if w not in added]
    )
    ids = []
    for word in words:
        found = tokenizer(word, add_special_tokens=False).input_ids
        if len(found) != 1:
            raise ModelError(f"{word!r} becomes {len(found)} tokens {found}, expected exactly 1")
        ids += found
    return ids


def attach(
    tower: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    words: list[str],
    *,
    init: str = "random",
    seed: int = 0,
) -> PeftModel:
    """Make the rows of `words` the only trainable numbers of `tower`, which is changed in place and frozen.

    `init` is `"random"` (N(0, .02), CoOp's) or words whose mean embedding the rows start from. The rows,
    (k, D), are float32 whatever the tower's dtype. The tower grows by as many rows as the vocabulary needs.

    Raises `ModelError` as `add_words` does, or if `init` is unknown to the tokenizer.
    """
    ids = add_words(tokenizer, words)
    if len(_table(tower)) <= max(ids):
        tower.resize_token_embeddings(max(ids) + 1, mean_resizing=False)
    config = TrainableTokensConfig(token_indices=ids, target_modules=[embedding_name(tower)])
    weight = _table(tower)
    if init == "random":
        drawn = torch.Generator().manual_seed(seed)
        start = torch.randn(len(ids), weight.shape[1], generator=drawn) * 0.02
    else:
        known = tokenizer(init, add_special_tokens=False).input_ids
        if not known or tokenizer.unk_token_id in known:
            raise ModelError(f"init is {init!r}, expected 'random' or words that the tokenizer knows")
        start = weight[known].float().mean(0).expand(len(ids), -1)
    model = get_peft_model(tower, config, adapter_name=ADAPTER)
    for layer in (m for m in model.modules() if isinstance(m, TrainableTokensLayer)):
        layer.__class__ = RowLookup  # peft has no way to name another class
    set_vectors(model, start)
    return model


def load(
    tower: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, words: list[str], folder: str | Path
) -> PeftModel:
    """Put the rows that `save_adapter` wrote back into a tower of the same kind; nothing is trainable then.

    Raises `ModelError` if the folder's rows are of other words or another width.
    """
    ids, rows = add_words(tokenizer, words), read_vectors(folder)
    stored = list(TrainableTokensConfig.from_pretrained(str(folder)).token_indices)
    if stored != ids:
        raise ModelError(f"{folder}: holds rows of tokens {stored}, expected {ids} ({words})")
    model = attach(tower, tokenizer, words)
    if rows.shape != vectors(model).shape:
        width = vectors(model).shape[1]
        raise ModelError(f"{folder}: rows of shape {tuple(rows.shape)} do not fit a tower of width {width}")
    set_vectors(model, rows)
    model.requires_grad_(False)
    return model


def vectors(model: PeftModel) -> nn.Parameter:
    """The trained rows of a model from `attach` or `load`: (k, D), float32."""
    return _layer(model).trainable_tokens_delta[ADAPTER]


def set_vectors(model: PeftModel, rows: torch.Tensor) -> None:
    """Replace the trained rows by other ones, (k, D); on a tower without weights they are its only numbers."""
    old = vectors(model)
    rows = rows.detach().float().clone().to(rows.device if old.is_meta else old.device)
    _layer(model).trainable_tokens_delta[ADAPTER] = nn.Parameter(rows)


def read_vectors(folder: str | Path) -> torch.Tensor:
    """The rows (k, D) in an adapter's folder, without a tower to put them in.

    Raises `ModelError` if the folder holds anything else.
    """
    tensors = load_file(Path(folder) / "adapter_model.safetensors")
    if not tensors or not all(name.endswith("trainable_tokens_delta") for name in tensors):
        raise ModelError(f"{folder}: holds {sorted(tensors)}, expected trained token rows alone")
    return next(iter(tensors.values()))  # a T5, whose embeddings are tied, has them several times


def nearest_words(model: PeftModel, tokenizer: PreTrainedTokenizerBase, n: int = 5) -> pd.DataFrame:
    """The n vocabulary words closest to each trained row, by Euclidean distance as CoOp's paper does
    (section 3.4).

    Returns `vector` (from 1), `rank`, `word`, `distance`, `cosine`.
    """
    layer, rows = _layer(model), vectors(model).detach().float().cpu()
    known = sorted(set(tokenizer.get_vocab().values()) - set(layer.token_indices[ADAPTER]))
    table = layer.base_layer.weight.detach()[known].float().cpu()
    distance = torch.cdist(rows, table)
    cosine = nn.functional.cosine_similarity(rows[:, None], table[None], dim=-1)
    found = []
    for vector in range(len(rows)):
        for rank, j in enumerate(distance[vector].argsort()[:n].tolist(), start=1):
            word = tokenizer.convert_ids_to_tokens(known[j])
            found.append((vector + 1, rank, word, distance[vector, j].item(), cosine[vector, j].item()))
    return pd.DataFrame(found, columns=["vector", "rank", "word", "distance", "cosine"])


def embedding_name(tower: PreTrainedModel) -> str:
    """Name of the input embedding inside `tower`, e.g. `embeddings.word_embeddings`."""
    embedding = tower.get_input_embeddings()
    return next(name for name, module in tower.named_modules() if module is embedding)


def _table(tower: Any) -> torch.Tensor:
    return tower.get_input_embeddings().weight.detach()


def _layer(model: PeftModel) -> Any:
    return next(m for m in model.modules() if isinstance(m, TrainableTokensLayer))


def save_adapter(model: PeftModel, folder: Path) -> None:
    """What was trained, alone: peft itself would ask the hub whether the whole vocabulary must go with it."""
    config: Any
    for config in model.peft_config.values():
        if isinstance(targets := getattr(config, "target_modules", None), set):
            config.target_modules = sorted(targets)  # the same file each time: a run's key depends on it
    model.save_pretrained(str(folder), save_embedding_layers=False)


def make_trainable(model: Any) -> Any:
    """The model, of which what peft added requires a gradient, and nothing else."""
    for name, p in model.named_parameters():
        p.requires_grad_(is_added(name))
    return model


def is_added(name: str) -> bool:
    """Whether a parameter of this name belongs to one of the adapters used here."""
    return ".lora_" in name or "trainable_tokens_delta" in name


def adapter_folder(folder: Path) -> Path:
    """The folder, which must hold a peft adapter: peft itself would look for a missing one on the hub."""
    file = folder / "adapter_config.json"
    if not file.is_file():
        raise FileNotFoundError(errno.ENOENT, "no adapter", str(file))
    return folder

"""`demo-vlm`: a miniature InstructBLIP (self-pretrained), and the command that makes it.

transformers' InstructBLIP classes with a small Q-Former and a small Llama around the frozen CLIP ViT-B/16
tower of `demo-clip`, taught by us to answer questions about pictures (`data/build/demo_vlm_data.py`), then frozen.
Its visual tokens are the class tokens after the tower's embeddings and after each of its 12 blocks: the
middle ones keep the traces of processing that the last one drops. It is a stand-in that shows the method at
work, not a model to rely on.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import torch
import typer
from demo_vlm_data import MEASURED, color, measure, picture, plan, read_original
from demo_vlm_questions import ALL, SIMPLE, WORDS, Questions
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from tqdm.auto import tqdm
from transformers import (
    BertTokenizerFast,
    InstructBlipConfig,
    InstructBlipForConditionalGeneration,
    LlamaConfig,
    PreTrainedTokenizerFast,
)

from afp.data.images import sha256
from afp.models.backbones import load_backbone
from afp.models.instructblip import DEMO, TOKEN_STATISTICS, GivenTokens, Vlm
from afp.models.training import Recipe, train
from afp.paths import DEMO_VLM, cache_dir

QUERIES = 8
HIDDEN = 128
LAYERS = 2
BATCH = 64
TOWER_BATCH = 16
CHANNEL_DROPOUT = 0.2
MIN_STD = 0.01
RECIPE = Recipe(lr=1.5e-3, epochs=1, batch_size=BATCH, weight_decay=0.2, warmup_steps=100)


def llm_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word, lower case; the special tokens of a Llama."""
    special = ["<pad>", "<unk>", "<s>", "</s>", "<image>"]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(special + WORDS)}, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 2)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=["<image>"],
    )


def qformer_tokenizer() -> BertTokenizerFast:
    """A BERT tokenizer over the same words."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    return BertTokenizerFast(vocab={w: i for i, w in enumerate(special + WORDS)})


def config() -> InstructBlipConfig:
    """The miniature's dimensions. Its own image tower is empty: tokens of width 768 come from `demo-clip`."""
    llm, qformer = llm_tokenizer(), qformer_tokenizer()
    heads, mlp = HIDDEN // 32, 4 * HIDDEN
    return InstructBlipConfig(
        vision_config={
            "hidden_size": 768,
            "intermediate_size": 768,
            "num_hidden_layers": 0,
            "num_attention_heads": 12,
            "image_size": 1,
            "patch_size": 1,
        },
        qformer_config={
            "vocab_size": len(qformer),
            "hidden_size": HIDDEN,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": heads,
            "intermediate_size": mlp,
            "max_position_embeddings": 64,
            "cross_attention_frequency": 1,
            "encoder_hidden_size": 768,
            "pad_token_id": qformer.pad_token_id,
        },
        text_config=LlamaConfig(
            vocab_size=len(llm),
            hidden_size=HIDDEN,
            num_hidden_layers=LAYERS,
            num_attention_heads=heads,
            intermediate_size=mlp,
            max_position_embeddings=128,
            pad_token_id=llm.pad_token_id,
            bos_token_id=llm.bos_token_id,
            eos_token_id=llm.eos_token_id,
        ).to_dict(),
        num_query_tokens=QUERIES,
        image_token_index=llm.convert_tokens_to_ids("<image>"),
    )


def untrained(seed: int) -> InstructBlipForConditionalGeneration:
    """The miniature before pretraining: the control that shows what pretraining is for."""
    torch.manual_seed(seed)
    model = InstructBlipForConditionalGeneration(config())
    torch.nn.init.normal_(
        model.query_tokens, std=0.02
    )  # transformers leaves zeros: all queries alike for ever
    return model


def pupil(seed: int, tokens: torch.Tensor) -> Vlm:
    """An untrained miniature that takes image tokens like `tokens` (n, 13, 768), with its tokenizers."""
    model = untrained(seed)
    tokens = tokens.float()
    # The class token before the first block is the same in every image: its deviation is rounding alone.
    model.vision_model = GivenTokens(tokens.mean(0), tokens.std(0).clamp(min=MIN_STD))
    words = llm_tokenizer()
    return Vlm(DEMO, model, words, qformer_tokenizer(), None, "cls", len(words))


def pretrain(
    vlm: Vlm, tokens: torch.Tensor, questions: Questions, steps: tuple[int, int], seed: int
) -> pd.DataFrame:
    """Teach simple questions first, then all kinds; returns the history of both lessons.

    `tokens` (n, 13, 768) are those of the pictures that `questions` asks about.
    """
    vlm.model.requires_grad_(True)
    history = []
    for lesson, (mix, n_steps) in enumerate(zip((SIMPLE, ALL), steps, strict=True)):

        def loss(model, seeds: torch.Tensor, mix=mix) -> tuple[torch.Tensor, float]:
            rows, texts, answers = questions.batch(seeds.tolist(), mix)
            # Whole channels are set to their mean, in all tokens: no answer may hang on a few of them.
            kept = torch.rand(len(rows), 1, tokens.shape[2]) >= CHANNEL_DROPOUT
            seen = torch.where(kept, tokens[rows].float(), vlm.model.vision_model.mean)
            return vlm.losses(seen, vlm.encode(texts, answers)).sum(), len(rows)

        seeds = range((2 * seed + lesson) * 10**8, (2 * seed + lesson) * 10**8 + n_steps * BATCH)
        recipe = replace(RECIPE, seed=seed)
        history.append(train(vlm.model, seeds, loss, recipe, progress=True).assign(lesson=lesson))
    vlm.model.requires_grad_(False).eval()
    return pd.concat(history, ignore_index=True)


@torch.inference_mode()
def examine(vlm: Vlm, tokens: torch.Tensor, questions: Questions, n: int = 1000) -> pd.DataFrame:
    """Share of right answers among n drawn questions of each kind; `chance` is always giving the commonest
    answer."""
    rows_of_table = []
    for kind in ALL:
        rng = np.random.default_rng(0)
        rows, texts, answers = zip(*(questions.draw(kind, rng) for _ in range(n)), strict=True)
        given = [
            vlm.logits(tokens[list(rows[i : i + 100])].float(), vlm.encode(texts[i : i + 100])).argmax(-1)[
                :, 0
            ]
            for i in range(0, n, 100)
        ]
        expected = torch.tensor([vlm.answer_id(a) for a in answers])
        chance = pd.Series(answers).value_counts(normalize=True).iloc[0]
        right = (torch.cat(given) == expected).double().mean().item()
        rows_of_table.append(
            {"question": kind, "example": texts[0], "right": right, "chance": chance, "n": n}
        )
    return pd.DataFrame(rows_of_table)


def read_pictures(originals: Path, photos: pd.DataFrame, n: int) -> tuple[torch.Tensor, pd.DataFrame]:
    """Draw n pictures and run the image tower over them, once: the result is cached.

    Returns tokens (n, 13, 768) float16, and a row a picture: `source`, `kind`, `split`, `change`, `color`
    and the measured properties.
    """
    backbone = load_backbone("demo-clip")
    cache = cache_dir() / DEMO
    files = cache / f"tokens-{n}.safetensors", cache / f"pictures-{n}.csv"
    if all(f.is_file() for f in files):
        return load_file(files[0])["tokens"], pd.read_csv(files[1])
    images = [read_original(originals / p) for p in tqdm(photos["path"], desc="originals")]
    drawn = plan(photos["kind"].tolist(), n)
    tokens, rows = [], []
    for start in tqdm(range(0, n, TOWER_BATCH), desc="pictures", unit=f"{TOWER_BATCH} images"):
        batch = drawn[start : start + TOWER_BATCH]
        pictures = [picture(images[i], change, seed) for i, change, seed in batch]
        tokens.append(backbone.extract(backbone.preprocess(pictures), ("cls",))["cls"].half())
        for (i, change, _), image in zip(batch, pictures, strict=True):
            about = {"source": i, "kind": photos["kind"][i], "split": photos["split"][i], "change": change}
            rows.append(about | {"color": color(image)} | {k: float(v) for k, v in measure(image).items()})
    cache.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_csv(files[1], index=False)
    save_file({"tokens": torch.cat(tokens)}, files[0])
    return read_pictures(originals, photos, n)


def save(vlm: Vlm, folder: Path) -> None:
    """Weights in float16 as transformers writes them, the statistics of the tokens, and both tokenizers."""
    vision, statistics = InstructBlipForConditionalGeneration(config()).vision_model, vlm.model.vision_model
    save_file({"mean": statistics.mean, "std": statistics.std}, folder / TOKEN_STATISTICS)
    vlm.model.vision_model = vision
    vlm.model.half().save_pretrained(folder)
    vlm.tokenizer.save_pretrained(folder)
    vlm.qformer_tokenizer.save_pretrained(folder / "qformer_tokenizer")


def build(
    originals: Annotated[Path, typer.Argument(help="Folder with the unpacked Debian packages.")],
    pictures: Annotated[int, typer.Option(help="How many pictures to draw.")] = 2560,
    steps: Annotated[tuple[int, int], typer.Option(help="Steps of the two lessons.")] = (400, 2200),
    seeds: Annotated[
        int, typer.Option(help="How many models to train; the best on unseen photos stays.")
    ] = 1,
    out: Annotated[Path, typer.Option(help="Where the model goes.")] = DEMO_VLM,
) -> None:
    """Pretrain the miniature InstructBLIP and write it with its log and its examination.

    The originals are Debian wallpapers, listed in `data/demo-vlm/photos.csv`: `apt-get download PACKAGE` and
    `dpkg -x PACKAGE.deb FOLDER` for each package named there.
    """
    photos = pd.read_csv(DEMO_VLM / "photos.csv")
    for path, digest in zip(photos["path"], photos["sha256"], strict=True):
        if sha256(originals / path) != digest:
            raise typer.BadParameter(
                f"{originals / path} is another file than data/demo-vlm/photos.csv lists"
            )
    tokens, table = read_pictures(originals, photos, pictures)
    is_train = (table["split"] == "train").to_numpy()
    quantiles = table.loc[is_train, list(MEASURED)].quantile([1 / 3, 2 / 3])
    train_set, unseen = (
        Questions(table[rows].reset_index(drop=True), quantiles) for rows in (is_train, ~is_train)
    )
    best = None
    for seed in range(seeds):
        vlm = pupil(seed, tokens[is_train])
        history = pretrain(vlm, tokens[is_train], train_set, steps, seed)
        result = examine(vlm, tokens[~is_train], unseen).assign(seed=seed)
        typer.echo(result.to_string(index=False))
        if best is None or result["right"].mean() > best[1]["right"].mean():
            best = vlm, result, history
    vlm, result, history = best
    out.mkdir(parents=True, exist_ok=True)
    save(vlm, out)
    result.round(4).to_csv(out / "vqa.csv", index=False)
    log = history.assign(step=history["step"] // 100 * 100).groupby(["lesson", "step"])[["lr", "loss"]].mean()
    log.round(6).to_csv(out / "log.csv")


if __name__ == "__main__":
    typer.run(build)

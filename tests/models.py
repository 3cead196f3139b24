"""Small backbones of random weights, saved as the hub's are."""

from __future__ import annotations

from pathlib import Path

import torch
from demo_vlm import llm_tokenizer, qformer_tokenizer
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizerFast,
    BlipImageProcessorPil,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    InstructBlipConfig,
    InstructBlipForConditionalGeneration,
    LlamaConfig,
    PreTrainedTokenizerFast,
    T5Config,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
)

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
VISION = {**SMALL, "image_size": 32, "patch_size": 8, "projection_dim": 12}
WORDS = [
    "a",
    "real",
    "fake",
    "photo",
    ".",
    ",",
    "this",
    "is",
    "image",
    "that",
    "picture",
    "of",
    "something",
    "cat",
]


def write_tower(folder: Path, seed: int = 0, size: int = 32, width: int = 24) -> str:
    """A CLIP image tower of three narrow blocks with random weights, as the hub has them; returns its folder."""
    torch.manual_seed(seed)
    config = CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=size,
        patch_size=8,
        projection_dim=width // 2,
    )
    CLIPVisionModelWithProjection(config).save_pretrained(folder)
    CLIPImageProcessorPil(
        size={"shortest_edge": size}, crop_size={"height": size, "width": size}
    ).save_pretrained(folder)
    return str(folder)


def clip_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-pair words as CLIP's: lower case, a start and an end token, padded with the end token."""
    vocab = {w + "</w>": i for i, w in enumerate(WORDS)} | {"<|startoftext|>": 98, "<|endoftext|>": 99}
    letters = sorted(set("".join(WORDS)))
    vocab |= {c: 20 + i for i, c in enumerate(letters)} | {f"{c}</w>": 50 + i for i, c in enumerate(letters)}
    merges = []
    for word in WORDS:
        parts = [*word[:-1], word[-1] + "</w>"]
        while len(parts) > 1:
            merges.append((parts[-2], parts[-1]))
            parts[-2:] = [parts[-2] + parts[-1]]
            vocab.setdefault(parts[-1], 100 + len(vocab))
    vocab = {w: i for i, w in enumerate(sorted(vocab, key=lambda w: (w.startswith("<|"), vocab[w])))}
    tokenizer = Tokenizer(models.BPE(vocab, merges, end_of_word_suffix="</w>", unk_token="<|endoftext|>"))
    tokenizer.normalizer = normalizers.Lowercase()
    split = [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(split)
    tokenizer.decoder = decoders.BPEDecoder(suffix="</w>")
    start, end = vocab["<|startoftext|>"], vocab["<|endoftext|>"]
    tokenizer.post_processor = processors.RobertaProcessing(
        ("<|endoftext|>", end), ("<|startoftext|>", start)
    )
    special = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<|endoftext|>", **special)


def small_clip(folder, eos_token_id=None):
    """A small CLIPModel saved as the hub's are; by default with the end token of OpenAI's configs, 2."""
    tokenizer = clip_tokenizer()
    text = {**SMALL, "vocab_size": len(tokenizer), "max_position_embeddings": 40, "projection_dim": 12}
    text |= {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": eos_token_id or 2}
    torch.manual_seed(0)
    CLIPModel(CLIPConfig(text_config=text, vision_config=VISION, projection_dim=12)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return save_processor(folder)


def small_dual(folder, n_blocks=SMALL["num_hidden_layers"]):
    """A small CLIP image tower of so many blocks joined to a small BERT, as `demo-clip` is."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = BertTokenizerFast(vocab={w: i for i, w in enumerate(special + WORDS)})
    torch.manual_seed(0)
    image = CLIPVisionModelWithProjection(CLIPVisionConfig(**VISION | {"num_hidden_layers": n_blocks}))
    text = BertModel(BertConfig(vocab_size=len(tokenizer), max_position_embeddings=40, **SMALL))
    config = VisionTextDualEncoderConfig.from_vision_text_configs(
        image.config, text.config, projection_dim=12
    )
    model = VisionTextDualEncoderModel(config, vision_model=image.vision_model, text_model=text)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return save_processor(folder)


def save_processor(folder):
    size = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    CLIPImageProcessorPil(**size).save_pretrained(folder)
    return str(folder)


VLM_SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def small_config(llm: str = "llama") -> InstructBlipConfig:
    """Without dropout, so that a step in training can be computed again."""
    words, q_words = llm_tokenizer(), qformer_tokenizer()
    if llm == "llama":
        text = LlamaConfig(vocab_size=len(words), bos_token_id=2, eos_token_id=3, pad_token_id=0, **VLM_SMALL)
    else:
        text = T5Config(
            vocab_size=len(words) + 8,
            d_model=16,
            d_kv=8,
            d_ff=32,
            num_layers=1,
            num_heads=2,
            eos_token_id=3,
            decoder_start_token_id=0,
        )
    return InstructBlipConfig(
        vision_config={"image_size": 28, "patch_size": 14, **VLM_SMALL},
        qformer_config={"vocab_size": len(q_words), "encoder_hidden_size": 16, **NO_DROPOUT, **VLM_SMALL},
        text_config=text.to_dict(),
        num_query_tokens=3,
        image_token_index=words.convert_tokens_to_ids("<image>"),
    )


def small_vlm(folder, config: InstructBlipConfig | None = None) -> str:
    """A small InstructBLIP, saved as the ones on the hub are: both tokenizers, image processor; its folder."""
    torch.manual_seed(0)
    model = InstructBlipForConditionalGeneration(config or small_config())
    for p in model.parameters():
        if p.ndim > 1:
            torch.nn.init.normal_(p, std=0.3)  # large enough that answers differ between images
    model.save_pretrained(folder)
    llm_tokenizer().save_pretrained(folder)
    qformer_tokenizer().save_pretrained(f"{folder}/qformer_tokenizer")
    BlipImageProcessorPil(size={"height": 28, "width": 28}).save_pretrained(folder)
    return str(folder)

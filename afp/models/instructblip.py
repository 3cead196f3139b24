"""InstructBLIP as a frozen answerer: image tokens and a question in, the logits of its answer out.

The image tower runs apart from the rest, because it never changes: its tokens are extracted once and
cached, and an epoch costs only Q-Former and language model. Everything else is transformers' own model,
called as it is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoTokenizer,
    BitsAndBytesConfig,
    InstructBlipConfig,
    InstructBlipForConditionalGeneration,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling

from ..errors import AfpError, ModelError
from ..paths import DEMO_VLM
from .backbones import best_device, load_backbone

DEMO = "demo-vlm"  # the miniature InstructBLIP (self-pretrained), see data/build/demo_vlm.py
UNTRAINED = "demo-vlm-untrained"  # its control: the same with random weights
STATISTICS = "token_statistics.safetensors"
ALIASES = {
    "instructblip-vicuna-7b": "Salesforce/instructblip-vicuna-7b",
    "instructblip-flan-t5-xl": "Salesforce/instructblip-flan-t5-xl",
}
QUANTISED = {"8bit": {"load_in_8bit": True}, "4bit": {"load_in_4bit": True}}


@dataclass(frozen=True)
class Encoded:
    """Texts of b questions as tensors; `labels` and `positions` (b, a) say which logits answer what."""

    qformer_input_ids: torch.Tensor
    qformer_attention_mask: torch.Tensor
    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    decoder_input_ids: torch.Tensor | None
    positions: torch.Tensor
    labels: torch.Tensor

    def take(self, rows: torch.Tensor) -> Encoded:
        """The texts of these rows, (n,) integers, repeated as often as they stand there."""
        return Encoded(**{k: v if v is None else v[rows] for k, v in vars(self).items()})


@dataclass(frozen=True)
class Vlm:
    """A frozen InstructBLIP: `model` without its image tower, the `tower` beside it, and both tokenizers."""

    name: str
    model: InstructBlipForConditionalGeneration
    tokenizer: object
    qformer_tokenizer: object
    tower: object
    output: str
    n_words: int  # that the language model came with: rows added later are no answers

    @property
    def device(self) -> torch.device:
        return self.model.query_tokens.device

    def answer_id(self, answer: str) -> int:
        """The one token of `answer`. Raises ModelError if it is none or several."""
        ids = self.tokenizer(answer, add_special_tokens=False).input_ids
        if len(ids) != 1 or ids[0] == self.tokenizer.unk_token_id:
            raise ModelError(
                f"answer {answer!r} is not exactly one token of {self.name} (but {ids}): use another word,"
                " or answer_scoring='rank'"
            )
        return ids[0]

    def encode(
        self,
        questions: Sequence[str],
        answers: Sequence[str] | None = None,
        *,
        qformer_questions: Sequence[str] | None = None,
    ) -> Encoded:
        """Questions, and the answers that are to be scored or learned, padded on the right.

        The Q-Former reads `qformer_questions`, by default the same ones. Right padding leaves every score
        as it is: the Q-Former masks it, and nothing in the language model looks ahead. Without answers,
        there is one position a question: where the answer's first token stands.
        """
        q = self.qformer_tokenizer(
            list(qformer_questions or questions), padding=True, padding_side="right", return_tensors="pt"
        )
        image = [self.model.config.image_token_index] * self.model.config.num_query_tokens
        prompts = [image + ids for ids in self.tokenizer(list(questions)).input_ids]
        end = [self.tokenizer.eos_token_id]
        if answers is None:
            targets = [[-100]] * len(prompts)
        else:
            targets = [a + end for a in self.tokenizer(list(answers), add_special_tokens=False).input_ids]
        fed = [[i for i in t[:-1] if i >= 0] for t in targets]
        decoder, start = None, [len(p) - 1 for p in prompts]
        if self.model.config.use_decoder_only_language_model:
            prompts = [p + a for p, a in zip(prompts, fed, strict=True)]
        else:
            first = self.model.config.text_config.decoder_start_token_id
            decoder, _ = _pad([[first, *a] for a in fed], self.tokenizer.pad_token_id)
            start = [0] * len(prompts)
        input_ids, mask = _pad(prompts, self.tokenizer.pad_token_id or 0)
        labels, _ = _pad(targets, -100)
        positions = torch.tensor(start)[:, None] + torch.arange(labels.shape[1])
        positions = positions.clamp(max=(input_ids if decoder is None else decoder).shape[1] - 1)
        parts = (q["input_ids"], q["attention_mask"], input_ids, mask, decoder, positions, labels)
        return Encoded(*(None if p is None else p.to(self.device) for p in parts))

    def logits(self, tokens: torch.Tensor, texts: Encoded) -> torch.Tensor:
        """Logits (b, a, n_words), float32, of what follows at each answer position, given tokens (b, t,
        D)."""
        inputs = {k: v for k, v in vars(texts).items() if v is not None and k not in ("positions", "labels")}
        tokens = tokens.to(self.device, self.model.dtype)
        found = self.model(pixel_values=tokens, **inputs).logits[..., : self.n_words]
        index = texts.positions[..., None].expand(-1, -1, found.shape[-1])
        return found.gather(1, index).float()

    def queries(self, tokens: torch.Tensor, texts: Encoded) -> torch.Tensor:
        """The Q-Former's queries (b, q, D), float32, after they read tokens (b, t, D) and the question.

        As they leave the Q-Former, before their projection to the language model's width.
        """
        heard = {k: getattr(texts, k) for k in ("qformer_input_ids", "qformer_attention_mask")}
        found = self.model.get_image_features(tokens.to(self.device, self.model.dtype), **heard)
        return found.qformer_outputs.last_hidden_state[:, : self.model.config.num_query_tokens].float()

    def losses(self, tokens: torch.Tensor, texts: Encoded) -> torch.Tensor:
        """Mean cross-entropy of each answer, end token included: (b,)."""
        logits = self.logits(tokens, texts)
        each = nn.functional.cross_entropy(logits.transpose(1, 2), texts.labels, reduction="none")
        return each.sum(1) / (texts.labels >= 0).sum(1)

    @torch.inference_mode()
    def ask(self, tokens: torch.Tensor, question: str, max_new_tokens: int = 10) -> list[str]:
        """What the model itself answers to one question about each image, greedily."""
        texts = self.encode([question] * len(tokens))
        keep = ("qformer_input_ids", "qformer_attention_mask", "input_ids", "attention_mask")
        said = self.model.generate(
            pixel_values=tokens.to(self.device, self.model.dtype),
            **{k: getattr(texts, k) for k in keep},
            max_new_tokens=max_new_tokens,
            do_sample=False,
        )
        if self.model.config.use_decoder_only_language_model:
            said = said[:, texts.input_ids.shape[1] :]  # the rest repeats the question
        return [t.strip() for t in self.tokenizer.batch_decode(said, skip_special_tokens=True)]


@torch.inference_mode(False)  # whoever needs it first: its tensors must take part in gradients later
def load_vlm(
    name: str = DEMO,
    *,
    device: str | torch.device | None = None,
    dtype: str = "auto",
    device_map: str | dict | None = None,
    quantisation: str | None = None,
    gradient_checkpointing: bool = False,
    pixel_mean: Sequence[float] | None = None,
    pixel_std: Sequence[float] | None = None,
) -> Vlm:
    """Load a frozen InstructBLIP: `demo-vlm` (or its control `demo-vlm-untrained`), an alias, a hub name, or
    a folder of `save_pretrained`.

    Args:
        device: torch device; `meta` builds the model from its config alone, without weights.
        dtype: `auto` is bfloat16 on a GPU and float32 on a CPU.
        device_map, quantisation (`8bit` or `4bit`, needs bitsandbytes): as in transformers.
        pixel_mean, pixel_std: replace the image processor's own statistics.
    Raises:
        ModelError: not found, no InstructBLIP, or float16 with a T5 (which overflows in it).
    """
    is_demo = name in (DEMO, UNTRAINED)
    source = str(DEMO_VLM) if is_demo else ALIASES.get(name, name)
    device = torch.device(device) if device else best_device()
    config = _config(name, source)
    if dtype == "auto":
        dtype = "bfloat16" if device.type == "cuda" else "float32"
    if dtype not in ("float32", "bfloat16", "float16"):
        raise ModelError(f"dtype is {dtype!r}, expected auto, float32, bfloat16 or float16")
    if dtype == "float16" and config.text_config.model_type == "t5":
        raise ModelError(f"dtype is float16, but the T5 of {name} overflows in it; use bfloat16 or float32")
    if quantisation not in (None, *QUANTISED):
        raise ModelError(f"quantisation is {quantisation!r}, expected one of {', '.join(QUANTISED)}")
    quantised = quantisation and BitsAndBytesConfig(**QUANTISED[quantisation])
    try:
        if device.type == "meta":
            with torch.device("meta"):
                model = InstructBlipForConditionalGeneration(config)
        elif name == UNTRAINED:
            model = _untrained(config)
        else:
            model = InstructBlipForConditionalGeneration.from_pretrained(
                source,
                dtype=getattr(torch, dtype),
                device_map=device_map,
                quantization_config=quantised,
                use_safetensors=True,
            )
        tokenizer = AutoTokenizer.from_pretrained(source)
        qformer_tokenizer = AutoTokenizer.from_pretrained(source, subfolder="qformer_tokenizer")
        processor = None if is_demo else AutoImageProcessor.from_pretrained(source, backend="pil")
    except (OSError, ImportError) as error:
        raise ModelError(_cannot_load(name, source, error)) from error
    if device_map is None and quantised is None:
        model.to(device)
    model.requires_grad_(False).eval()
    if gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if is_demo:
        tower, output = load_backbone("demo-clip"), "cls"
    else:
        tower, output = VisionTower(name, model.vision_model, processor), "tokens"
    if pixel_mean is not None:
        tower = replace(tower, image_processor=_restated(tower.image_processor, pixel_mean, pixel_std))
    statistics = load_file(Path(source) / STATISTICS, device=str(device)) if is_demo else {}
    model.vision_model = GivenTokens(**statistics)
    return Vlm(name, model, tokenizer, qformer_tokenizer, tower, output, config.text_config.vocab_size)


def _untrained(config: InstructBlipConfig) -> InstructBlipForConditionalGeneration:
    """The model before any training, always the same: the control that shows what pretraining is for."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = InstructBlipForConditionalGeneration(config)
        # transformers leaves zeros: all queries alike for ever
        nn.init.normal_(model.query_tokens, std=0.02)
    return model


def _config(name: str, source: str) -> InstructBlipConfig:
    try:
        config = AutoConfig.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise ModelError(_cannot_load(name, source, error)) from error
    if not isinstance(config, InstructBlipConfig):
        raise ModelError(f"backbone {name}: a {config.model_type} model, expected instructblip")
    if config.image_token_index is None:
        raise ModelError(f"backbone {name}: image_token_index is missing in {source}/config.json")
    return config


def _cannot_load(name: str, source: str, error: Exception) -> str:
    reason = str(error).strip().splitlines()[0]
    return (
        f"backbone {name}: cannot load {source} ({reason}); expected demo-vlm, a hub name that this machine can"
        " download or has cached, or a folder written by save_pretrained"
    )


def _restated(processor, mean: Sequence[float], std: Sequence[float]):
    return type(processor).from_dict(processor.to_dict() | {"image_mean": list(mean), "image_std": list(std)})


def _pad(rows: list[list[int]], value: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of different lengths as one tensor (b, longest), and its mask."""
    longest = max(len(r) for r in rows)
    padded = torch.tensor([r + [value] * (longest - len(r)) for r in rows])
    mask = torch.tensor([[1] * len(r) + [0] * (longest - len(r)) for r in rows])
    return padded, mask


class GivenTokens(nn.Module):
    """Stands in for `vision_model`: what it is given as pixels are the image tokens, (b, t, D), already.

    With `mean` and `std`, (t, D), every channel of every token is standardised: the blocks of a tower
    differ in scale, and a few channels of each dwarf all others.
    """

    def __init__(self, mean: torch.Tensor | float = 0.0, std: torch.Tensor | float = 1.0):
        super().__init__()
        self.mean = nn.Buffer(torch.as_tensor(mean), persistent=False)
        self.std = nn.Buffer(torch.as_tensor(std), persistent=False)

    def forward(self, pixel_values: torch.Tensor, **_) -> BaseModelOutputWithPooling:
        tokens = ((pixel_values - self.mean) / self.std).to(pixel_values.dtype)
        return BaseModelOutputWithPooling(last_hidden_state=tokens, pooler_output=tokens[:, 0])


@dataclass(frozen=True)
class VisionTower:
    """InstructBLIP's own image tower, with the interface of `afp.models.backbones.Backbone` that features need."""

    name: str
    model: nn.Module
    image_processor: object

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @cached_property
    def fingerprint(self) -> str:
        digest = hashlib.sha256(self.image_processor.to_json_string().encode())
        for key, value in sorted(self.model.state_dict().items()):
            digest.update(f"{key} {value.dtype}".encode())
            digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy())
        return digest.hexdigest()[:16]

    def preprocess(self, images: Sequence) -> torch.Tensor:
        """RGB images to (b, 3, h, w) float32 on the CPU."""
        return self.image_processor(images=list(images), return_tensors="pt")["pixel_values"]

    @torch.inference_mode()
    def extract(self, pixels: torch.Tensor, outputs: Sequence[str]) -> dict[str, torch.Tensor]:
        """The tower's normalised tokens, (b, t, D) float32 on the CPU, under the only output `tokens`."""
        for output in outputs:
            self.check_output(output)
        weight = next(self.model.parameters())
        tokens = self.model(pixel_values=pixels.to(weight.device, weight.dtype)).last_hidden_state
        return dict.fromkeys(outputs, tokens.float().cpu())

    def check_output(self, output: str) -> None:
        if output != "tokens":
            raise AfpError(f"feature output {output!r}: expected 'tokens'")

from __future__ import annotations

import pytest
import torch
from peft import PeftModel
from peft.tuners.trainable_tokens import TrainableTokensLayer
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizerFast,
    CLIPTextConfig,
    CLIPTextModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from afp.errors import ModelError
from afp.models import soft_prompts

TEXT = ["is this photo real ?", "a photo of a cat .", "yes no maybe"] * 5
WIDTH = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}


def wordpiece(tmp_path):
    words = sorted({w for line in TEXT for w in line.split()})
    (tmp_path / "vocab.txt").write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[", "]", "*", *words])
    )
    return BertTokenizerFast(str(tmp_path / "vocab.txt"))


def sentencepiece_like(tmp_path):
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.train_from_iterator(TEXT, trainers.BpeTrainer(special_tokens=["<unk>", "<s>", "</s>"]))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


def byte_bpe(tmp_path):
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token="<|end|>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()]
    )
    tokenizer.train_from_iterator(
        TEXT, trainers.BpeTrainer(special_tokens=["<|end|>"], end_of_word_suffix="</w>")
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<|end|>", eos_token="<|end|>")


TOKENIZERS = [wordpiece, sentencepiece_like, byte_bpe]


def bert(n):
    return BertModel(BertConfig(vocab_size=n, max_position_embeddings=32, **WIDTH))


def llama(n):
    return LlamaForCausalLM(LlamaConfig(vocab_size=n, **WIDTH))


def clip(n):
    return CLIPTextModel(
        CLIPTextConfig(vocab_size=n, max_position_embeddings=32, eos_token_id=n - 1, **WIDTH)
    )


def t5(n):
    return T5ForConditionalGeneration(
        T5Config(vocab_size=n, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    )


@pytest.mark.parametrize("make", TOKENIZERS)
@pytest.mark.parametrize("k", [1, 4])
def test_each_word_is_one_token_where_it_was_written(tmp_path, make, k):
    tokenizer = make(tmp_path)
    plain = tokenizer("is this photo real ?", add_special_tokens=False).input_ids
    words = soft_prompts.pseudo_words(k)
    ids = soft_prompts.add_words(tokenizer, words)
    assert len(set(ids)) == k and soft_prompts.add_words(tokenizer, words) == ids
    found = tokenizer(f"is this photo real {' '.join(words)} ?", add_special_tokens=False).input_ids
    start = found.index(ids[0])
    assert found[start : start + k] == ids
    assert found[:start] == plain[:start]  # nothing is left over where the space was
    assert tokenizer("is this photo real ?", add_special_tokens=False).input_ids == plain


@pytest.mark.parametrize("tower", [bert, llama, clip, t5])
def test_only_the_rows_change_and_only_they_are_trained(tmp_path, tower):
    tokenizer = wordpiece(tmp_path)
    model = tower(len(tokenizer))
    words = soft_prompts.pseudo_words(3)
    peft = soft_prompts.attach(model, tokenizer, words, seed=1)
    assert sum(p.numel() for p in peft.parameters() if p.requires_grad) == 3 * 16
    before = {k: v.clone() for k, v in peft.state_dict().items() if "delta" not in k}
    ids = tokenizer(f"is this {' '.join(words)} real", return_tensors="pt").input_ids
    kwargs = {"decoder_input_ids": ids} if tower is t5 else {}
    optimizer = torch.optim.AdamW([p for p in peft.parameters() if p.requires_grad], 0.1, weight_decay=0.1)
    start = soft_prompts.vectors(peft).detach().clone()
    peft(input_ids=ids, **kwargs)[0].square().mean().backward()
    optimizer.step()
    assert (soft_prompts.vectors(peft) != start).any(1).all()
    assert all(torch.equal(peft.state_dict()[k], v) for k, v in before.items())


@pytest.mark.parametrize("tower", [bert, llama, clip])
def test_same_output_as_rows_written_into_a_plain_tower_and_as_plain_peft(tmp_path, tower):
    tokenizer = wordpiece(tmp_path)
    torch.manual_seed(0)
    n = len(tokenizer)
    model = tower(n).eval()
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    peft = soft_prompts.attach(model, tokenizer, soft_prompts.pseudo_words(2), init="cat").eval()
    with torch.no_grad():
        soft_prompts.vectors(peft).add_(torch.randn(2, 16))
    peft.save_pretrained(tmp_path / "adapter")
    ids = tokenizer("is this [*1] [*2] real", return_tensors="pt").input_ids
    expected = peft(input_ids=ids)[0]

    plain = tower(n).eval()
    plain.load_state_dict(weights)
    plain.resize_token_embeddings(len(tokenizer))
    by_peft = PeftModel.from_pretrained(plain, str(tmp_path / "adapter")).eval()
    assert torch.allclose(by_peft(input_ids=ids)[0][..., :n], expected[..., :n], atol=1e-6)
    plain = by_peft.unload()
    with torch.no_grad():
        plain.get_input_embeddings().weight[n:] = soft_prompts.vectors(peft)
    assert torch.allclose(plain(input_ids=ids)[0][..., :n], expected[..., :n], atol=1e-6)

    plain = tower(n).eval()
    plain.load_state_dict(weights)
    again = soft_prompts.load(plain, tokenizer, soft_prompts.pseudo_words(2), tmp_path / "adapter").eval()
    assert torch.equal(again(input_ids=ids)[0][..., :n], expected[..., :n])
    assert sum(p.numel() for p in again.parameters() if p.requires_grad) == 0


def test_rows_stay_float32_in_a_bfloat16_tower(tmp_path):
    tokenizer = wordpiece(tmp_path)
    peft = soft_prompts.attach(bert(len(tokenizer)).bfloat16(), tokenizer, ["[*]"])
    assert soft_prompts.vectors(peft).dtype == torch.float32
    output = peft(input_ids=tokenizer("is this [*]", return_tensors="pt").input_ids)[0]
    assert output.dtype == torch.bfloat16
    output.float()[..., 0].sum().backward()
    assert soft_prompts.vectors(peft).grad.abs().sum() > 0


def test_a_forward_does_not_copy_the_table(tmp_path, monkeypatch):
    tokenizer = wordpiece(tmp_path)
    model = soft_prompts.attach(bert(len(tokenizer)), tokenizer, soft_prompts.pseudo_words(2))
    layer = next(m for m in model.modules() if isinstance(m, soft_prompts.RowLookup))
    ids = tokenizer("is this [*1] [*2] real", return_tensors="pt").input_ids
    expected = TrainableTokensLayer.forward(layer, ids)  # peft's own
    expected.square().sum().backward()
    gradient = soft_prompts.vectors(model).grad.clone()
    soft_prompts.vectors(model).grad = None
    monkeypatch.setattr(
        TrainableTokensLayer, "get_merged_weights", lambda *_: pytest.fail("the table is copied")
    )
    found = layer(ids)
    found.square().sum().backward()
    assert torch.equal(found, expected) and torch.equal(soft_prompts.vectors(model).grad, gradient)


def test_start_values(tmp_path):
    tokenizer = wordpiece(tmp_path)
    model = bert(len(tokenizer))
    cat = model.get_input_embeddings().weight[tokenizer.convert_tokens_to_ids("cat")].detach().clone()
    peft = soft_prompts.attach(model, tokenizer, ["[*]"], init="cat")
    assert torch.equal(soft_prompts.vectors(peft)[0], cat)
    nearest = soft_prompts.nearest_words(peft, tokenizer, n=3)
    assert list(nearest["rank"]) == [1, 2, 3] and nearest.word[0] == "cat" and nearest.distance[0] < 1e-5
    drawn = [
        soft_prompts.vectors(soft_prompts.attach(bert(30), wordpiece(tmp_path), ["[*]"], seed=s))
        for s in (1, 1, 2)
    ]
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    assert drawn[0].std() < 0.05


def test_wrong_words_are_named(tmp_path):
    tokenizer = wordpiece(tmp_path)
    with pytest.raises(ModelError, match="'cat' is already in the vocabulary"):
        soft_prompts.add_words(tokenizer, ["cat"])
    with pytest.raises(ModelError, match="0, expected at least 1"):
        soft_prompts.pseudo_words(0)
    with pytest.raises(ModelError, match="zebra"):
        soft_prompts.attach(bert(30), tokenizer, ["[*]"], init="zebra")
    soft_prompts.attach(bert(30), tokenizer, ["[*]"]).save_pretrained(tmp_path / "adapter")
    wide = BertModel(BertConfig(vocab_size=30, **(WIDTH | {"hidden_size": 32})))
    with pytest.raises(ModelError, match="width 32"):
        soft_prompts.load(wide, tokenizer, ["[*]"], tmp_path / "adapter")
    with pytest.raises(ModelError, match="holds rows of tokens"):
        soft_prompts.load(bert(30), tokenizer, soft_prompts.pseudo_words(2), tmp_path / "adapter")

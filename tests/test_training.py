from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from afp.errors import ModelError
from afp.models import training
from afp.models.training import Recipe, train


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.frozen = nn.Linear(4, 32).requires_grad_(False)
        self.drop = nn.Dropout(0.1)
        self.head = nn.Linear(32, 2)

    def forward(self, x):
        return self.head(self.drop(self.frozen(x).relu()))


def data(n=50):
    x = torch.randn(n, 4, generator=torch.Generator().manual_seed(1))
    return TensorDataset(x, (x[:, 0] > 0).long())


def loss(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="sum"), len(batch[1])


def state(model):
    return {k: v.clone() for k, v in model.state_dict().items()}


def same(a, b):
    return all(torch.equal(a[k], b[k]) for k in a)


RECIPE = Recipe(lr=0.05, epochs=4, batch_size=16)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_learns_and_leaves_frozen_parameters_alone(optimizer):
    model = Model()
    before = state(model)
    recipe = Recipe(lr=0.3, epochs=20, batch_size=16, optimizer=optimizer)
    history = train(model, data(), loss, recipe, progress=False)
    assert history.loss[-4:].mean() < 0.7 * history.loss[:4].mean()
    assert list(history.step) == list(range(20 * 4))
    assert torch.equal(model.frozen.weight, before["frozen.weight"])
    assert not torch.equal(model.head.weight, before["head.weight"])


def test_same_seed_same_result_other_seed_another():
    results = []
    for seed in (0, 0, 1):
        model = Model()
        train(model, data(), loss, Recipe(lr=0.05, epochs=2, batch_size=16, seed=seed), progress=False)
        results.append(state(model))
    assert same(results[0], results[1])
    assert not same(results[0], results[2])


@pytest.mark.parametrize("validated", [False, True])
@pytest.mark.parametrize(("every", "dies_at"), [(500, 9), (2, 7)])
def test_resumed_run_equals_uninterrupted(tmp_path, monkeypatch, validated, every, dies_at):
    """Killed in the middle of an epoch, it goes on from the last state, kept each epoch and each `every` steps."""
    monkeypatch.setattr(training, "SAVE_EVERY", every)
    whole, stopped, resumed, steps = Model(), Model(), Model(), []

    def dying_loss(model, batch):
        if model.training:
            steps.append(1)
        if len(steps) == dies_at:
            raise KeyboardInterrupt
        return loss(model, batch)

    keep = {"validation": data(16)} if validated else {}
    expected = train(whole, data(), loss, RECIPE, progress=False, **keep)
    with pytest.raises(KeyboardInterrupt):
        # Its validation takes no step of the recipe's, so it calls the plain loss.
        train(stopped, data(), dying_loss, RECIPE, checkpoint=tmp_path, progress=False, **keep)
    done = []

    def counted(model, batch):
        done.extend([1] * model.training)
        return loss(model, batch)

    history = train(resumed, data(), counted, RECIPE, checkpoint=tmp_path, progress=False, **keep)
    assert len(done) == 16 - (dies_at - 1) // min(every, 4) * min(every, 4)
    assert same(state(whole), state(resumed))
    assert expected.drop(columns="seconds").equals(history.drop(columns="seconds"))
    again = train(Model(), data(), loss, RECIPE, checkpoint=tmp_path, progress=False, **keep)
    assert again.equals(history)


@pytest.mark.parametrize("damage", ["cut", "empty", "flipped"])
def test_a_damaged_checkpoint_is_said_and_counts_as_none(damage, tmp_path, caplog):
    whole, again = Model(), Model()
    train(whole, data(), loss, RECIPE, checkpoint=tmp_path, progress=False)
    file = tmp_path / training.STATE_FILE
    content = bytearray(file.read_bytes())
    parameter = whole.head.weight.detach().numpy().tobytes()
    content[content.index(parameter)] ^= 64
    file.write_bytes({"cut": content[: len(content) // 2], "empty": b"", "flipped": content}[damage])
    train(again, data(), loss, RECIPE, checkpoint=tmp_path, progress=False)
    assert same(state(whole), state(again)) and "damaged; the training begins anew" in caplog.text


def test_a_checkpoint_that_does_not_fit_on_the_disk_is_named(tmp_path, monkeypatch):
    def full(*_):
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0\nframe #0")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match=f"unexpected pos 64 vs 0: '{tmp_path / training.STATE_FILE}'"):
        train(Model(), data(), loss, RECIPE, checkpoint=tmp_path, progress=False)


def test_no_bit_flipped_in_a_checkpoint_ends_in_a_traceback(tmp_path):
    file = tmp_path / training.STATE_FILE
    torch.save({"parameters": {"w": torch.arange(4.0)}, "rows": [{"loss": 1.0}]}, file)
    whole = file.read_bytes()
    for i in range(len(whole)):
        for bit in (i % 8, (i + 5) % 8):
            flipped = bytearray(whole)
            flipped[i] ^= 1 << bit
            file.write_bytes(flipped)
            assert isinstance(training._read_state(file), dict | None), i


def test_checkpoint_of_another_recipe_is_refused(tmp_path):
    train(Model(), data(), loss, RECIPE, checkpoint=tmp_path, progress=False)
    with pytest.raises(ModelError, match="recipe"):
        train(
            Model(),
            data(),
            loss,
            Recipe(lr=0.1, epochs=4, batch_size=16),
            checkpoint=tmp_path,
            progress=False,
        )


def test_best_epoch_is_kept():
    model, seen = Model(), []

    def told(model, batch):
        if model.training:
            return loss(model, batch)
        seen.append(state(model))
        return torch.tensor([-0.1, -0.9, -0.9, -0.2][len(seen) - 1]), 1

    history = train(model, data(), told, RECIPE, validation=data(3), progress=False)
    assert same(state(model), seen[1])
    assert list(history.validation.dropna()) == pytest.approx([0.1, 0.9, 0.9, 0.2])


def test_nan_loss_names_step_and_rate():
    def bad(model, batch):
        total, n = loss(model, batch)
        return total * (math.nan if n == 2 else 1.0), n

    with pytest.raises(ModelError, match=r"nan at step 3 \(epoch 0\), learning rate 0\.05"):
        train(
            Model(),
            data(),
            bad,
            Recipe(lr=0.05, epochs=1, batch_size=16, schedule="constant"),
            progress=False,
        )


def test_nothing_to_train_is_an_error():
    with pytest.raises(ModelError, match="no parameter"):
        train(Model().requires_grad_(False), data(), loss, RECIPE, progress=False)


def test_learning_rates():
    recipe = Recipe(lr=1.0, epochs=10, batch_size=1, warmup_steps=10, warmup_lr=0.5)
    rates = [recipe.lr_at(s, 10) for s in range(100)]
    assert rates[0] == 0.5 and rates[5] == 0.75 and rates[10] == 1.0
    assert rates[55] == pytest.approx(0.5)
    assert rates == sorted(rates[:11]) + sorted(rates[11:], reverse=True)
    dassl = Recipe(
        lr=2e-3,
        epochs=4,
        batch_size=1,
        schedule="cosine-epoch",
        warmup="constant",
        warmup_epochs=1,
        warmup_lr=1e-5,
    )
    cosine = [1e-3 * (1 + math.cos(math.pi * epoch / 4)) for epoch in range(3)]
    expected = [rate for rate in [1e-5, *cosine] for _ in range(7)]
    assert [dassl.lr_at(s, 7) for s in range(28)] == pytest.approx(expected)


@pytest.mark.parametrize(
    "wrong",
    [
        {"optimizer": "adam"},
        {"lr": 0.0},
        {"epochs": 0},
        {"warmup_steps": -1},
        {"warmup_steps": 1, "warmup_epochs": 1},
    ],
)
def test_wrong_recipes_are_named(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Recipe(**({"lr": 0.1, "epochs": 1, "batch_size": 1} | wrong))

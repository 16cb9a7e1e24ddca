"""Lyrics are encoded once where nothing that encodes them is trained, in every step where something is."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from acestep_mlx.config.read_run import load_config
from acestep_mlx.families.v1 import FAMILY as V1
from acestep_mlx.families.v1 import lyric_states
from acestep_mlx.families.v1.lora import ATTENTION
from acestep_mlx.families.v1.lyric_encoder import LyricEncoder
from acestep_mlx.families.v1.lyric_states import LyricStates
from acestep_mlx.families.v1.objective import FlowMatching
from acestep_mlx.lora.surgery import LoRASpec
from acestep_mlx.report.events import Evaluated
from acestep_mlx.training import memory as plan
from acestep_mlx.training.evaluation import Evaluation

from . import runs, tiny

BLOCKS = LoRASpec(rank=2, alpha=3, targets=ATTENTION)
H = tiny.CONFIG.lyric_hidden_size


@pytest.fixture
def passes(monkeypatch):
    """(B, M) of every call of the lyric encoder; inside a compiled step only tracing calls it."""
    seen: list[tuple[int, ...]] = []
    plain = LyricEncoder.__call__

    def call(self, x, mask, **options):
        seen.append(x.shape[:2])
        return plain(self, x, mask, **options)

    monkeypatch.setattr(LyricEncoder, "__call__", call)
    return seen


def run(step, batches, accumulate=1):
    losses = []
    for i, batch in enumerate(batches):
        result = step(batch, update=(i + 1) % accumulate == 0, step=i // accumulate)
        mx.eval(result, step.state)
        losses.append(result.loss.item())
    return losses


def epoch_batches():
    """Two epochs of three songs: other noise, other neighbours, other padding; once without lyrics."""
    songs = tiny.batch(0, B=3, lyrics=9)
    batches = []
    for n, members in enumerate([(0, 1), (2, 0), (1, 2), (2, 1), (0, 2), (1, 0)]):
        rows = mx.array(members)
        batch = {k: v[rows] for k, v in songs.items()}
        batch["keys"] = mx.random.split(mx.random.key(n), 2)
        width = 3 * (n % 2)
        batch["lyric_ids"] = mx.pad(batch["lyric_ids"], [(0, 0), (0, width)])
        batch["lyric_mask"] = mx.pad(batch["lyric_mask"], [(0, 0), (0, width)])
        if n == 3:  # dropped for the second song
            keep = mx.array([[1], [0]])
            batch["lyric_ids"], batch["lyric_mask"] = batch["lyric_ids"] * keep, batch["lyric_mask"] * keep
        mx.eval(batch)
        batches.append(batch)
    return batches


@pytest.mark.slow_after(2)
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("targets", [ATTENTION, ("to_q", "lyric_proj")])
@pytest.mark.parametrize("blocks", [0, 2])
def test_same_losses_and_weights_as_encoding_in_every_step(accumulate, targets, blocks):
    found = []
    for keep in (False, True):
        model = tiny.adapted(spec=LoRASpec(rank=2, alpha=3, targets=targets))
        model.checkpoint_blocks = blocks
        step = tiny.step(model, optimizer="sgd", accumulate=accumulate)
        step.prepare = LyricStates.of(model) if keep else None
        assert not keep or step.prepare is not None
        found.append((run(step, epoch_batches(), accumulate), tiny.weights(model), step.traces))
    (losses, weights, traces), (kept_losses, kept_weights, kept_traces) = found
    np.testing.assert_allclose(kept_losses, losses, rtol=1e-6)
    assert tiny.difference(weights, kept_weights) < 1e-6
    assert tiny.difference(weights, tiny.weights(tiny.adapted(spec=LoRASpec(2, 3, targets=targets)))) > 1e-4
    assert kept_traces == traces


def test_each_lyrics_are_encoded_once_and_by_themselves(passes):
    model = tiny.adapted(spec=BLOCKS)
    step = tiny.step(model)
    step.prepare = LyricStates.of(model)
    run(step, epoch_batches())
    assert sorted(passes) == [(1, 5), (1, 7), (1, 9)]


@pytest.mark.parametrize("spec", [LoRASpec(rank=2), LoRASpec(rank=2, targets=("to_q", "w_1"))])
def test_where_the_encoder_is_trained_nothing_is_kept(spec):
    model = tiny.adapted(spec=spec)
    assert LyricStates.of(model) is None
    before = tiny.weights(model)
    run(tiny.step(model), epoch_batches())
    moved = tiny.weights(model)
    assert any(
        name.startswith("lyric_encoder.") and not mx.array_equal(before[name], value)
        for name, value in moved.items()
    )


def test_default_targets_encode_in_the_step(passes):
    model = tiny.adapted()
    step = tiny.step(model, compiled=False)
    step.prepare = LyricStates.of(model)
    run(step, epoch_batches())
    assert [shape[0] for shape in passes] == [2] * 6


def test_a_trained_lyric_embedding_is_trained_too():
    model = tiny.adapted(spec=BLOCKS)
    model.lyric_embs.unfreeze()
    assert LyricStates.of(model) is None


def test_states_do_not_depend_on_the_padding():
    model = tiny.transformer()
    ids = mx.random.randint(1, 64, (1, 9), key=mx.random.key(3))
    alone = model.encode_lyrics(ids, mx.ones((1, 9)))
    for more in (1, 55):
        pad = [(0, 0), (0, more)]
        padded = model.encode_lyrics(mx.pad(ids, pad, constant_values=7), mx.pad(mx.ones((1, 9)), pad))
        assert mx.abs(padded[:, :9] - alone).max().item() < 1e-6


def lyrics_batch(*rows, width=8):
    ids, mask = np.zeros((len(rows), width), np.int32), np.zeros((len(rows), width), np.float32)
    for b, row in enumerate(rows):
        ids[b, : len(row)], mask[b, : len(row)] = row, 1
    return {"lyric_ids": mx.array(ids), "lyric_mask": mx.array(mask)}


def test_the_least_recently_used_leave_when_the_bound_is_reached(passes):
    a, b, c = [1, 2, 3], [1, 2, 4], [1, 2, 3, 0]  # the last two tokens and the length tell them apart
    store = LyricStates(tiny.transformer(), max_bytes=4 * H * 7)
    for row in (a, b, a, c, a, b):
        states = store(lyrics_batch(row))["lyric_states"]
        assert states.shape == (1, 8, H) and mx.all(states[0, len(row) :] == 0).item()
        assert store.bytes <= store.max_bytes
    assert [shape[1] for shape in passes] == [3, 3, 4, 3]  # c drove b out, not a
    tight = LyricStates(tiny.transformer(), max_bytes=1)
    expected = tight.model.encode_lyrics(mx.array([a]), mx.ones((1, 3)))
    assert mx.array_equal(tight(lyrics_batch(a))["lyric_states"][:, :3], expected)
    assert tight.bytes == 0


def test_states_have_the_compute_dtype():
    model = tiny.transformer()
    model.set_dtype(mx.bfloat16)
    states = LyricStates(model)(lyrics_batch([1, 2], []))["lyric_states"]
    assert states.dtype == mx.bfloat16 and not states[1].any().item()


def test_no_lyrics_at_all_need_nothing(passes):
    batch = lyrics_batch([], [], width=0)
    assert "lyric_states" not in LyricStates(tiny.transformer())(batch) and not passes


def test_evaluation_is_the_same(passes):
    model = tiny.adapted(spec=BLOCKS)
    batches = epoch_batches()[:2]
    plain, bins, _ = Evaluation(model, batches, FlowMatching(), mx.float32)()
    passes.clear()
    kept, kept_bins, _ = Evaluation(model, batches, FlowMatching(), mx.float32, LyricStates.of(model))()
    assert kept == pytest.approx(plain, rel=1e-6) and kept_bins == pytest.approx(bins, rel=1e-6)
    assert len(passes) == 3


@pytest.mark.slow
@pytest.mark.parametrize("target, songs", [("attn_qkv", 2), ("attn_qkv+linear_qkv", None)])
def test_a_whole_run(tmp_path, tiny_model, passes, monkeypatch, target, songs):
    made: list[LyricStates | None] = []
    of = LyricStates.of
    monkeypatch.setattr(LyricStates, "of", lambda model: made.append(of(model)) or made[-1])
    options = {"acestep_lora_target": target, "max_train_steps": 7, "eval_loss_disable": False}
    _, recorder = runs.run(runs.configuration(tmp_path, tiny_model, "run", **options))
    assert recorder.of(Evaluated)
    if songs:  # three songs, two with lyrics; dropped ones cost nothing
        assert len(passes) == songs and all(B == 1 for B, _ in passes)
    else:
        assert made == [None] and all(M % 64 == 0 for _, M in passes)


def test_the_estimate_counts_the_store_where_it_is_used():
    load, name = V1.memory.load(60), "encoded lyrics, at most"

    def part(given=load, **options):
        return plan.estimate(load_config(options), given).parts.get(name)

    assert part(acestep_lora_target="attn_qkv") == lyric_states.MAX_BYTES
    assert part() is None
    assert part(acestep_lora_target="attn_qkv", lyrics_embedder_train=True) is None
    assert part(V1.memory.load(60, lyrics=0), acestep_lora_target="attn_qkv") is None


def test_what_is_asked_of_paths():
    model = tiny.adapted(spec=LoRASpec(rank=2, targets=("to_q", "lyric_proj")))
    assert not lyric_states.trained(path for path, _ in tree_flatten(model.trainable_parameters()))
    assert lyric_states.trained(["lyric_encoder.encoders.0.self_attn.linear_q"])

"""The two configurations of SimpleTuner's documentation, word for word, from songs to a LoRA.

The hub ids are folders here: a miniature checkpoint in the PyTorch layout, and a data set as upstream's
converter writes it.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from acestep_mlx.cli import main
from acestep_mlx.lora.formats.read import read_lora
from acestep_mlx.testing.demo_songs import SONGS, write_songs

CONFIG = """{"model_family": "ace_step", "model_type": "lora", "model_flavour": "base",
 "pretrained_model_name_or_path": "ACE-Step/ACE-Step-v1-3.5B", "resolution": 0,
 "mixed_precision": "bf16", "base_model_precision": "int8-quanto",
 "data_backend_config": "config/acestep-training-demo/multidatabackend.json"}"""
TEXT = """{"id": "text-embeds", "dataset_type": "text_embeds", "default": true, "type": "local",
  "cache_dir": "cache/text/{model_family}"}"""
LOCAL = """{"id": "my-audio-dataset", "type": "local", "dataset_type": "audio",
  "instance_data_dir": "datasets/my_audio_files", "caption_strategy": "textfile",
  "metadata_backend": "discovery", "disabled": false}"""
HUB = """{"id": "acestep-demo-data", "type": "huggingface", "dataset_type": "audio",
  "dataset_name": "Yi3852/ACEStep-Songs", "metadata_backend": "huggingface",
  "caption_strategy": "huggingface", "cache_dir_vae": "cache/vae/{model_family}/acestep-demo-data"}"""


def _upstream_data_set(folder: Path, songs: list[Path]) -> None:
    datasets = pytest.importorskip("datasets")
    columns = {
        "keys": [path.stem for path in songs],
        "filename": [str(path.resolve()) for path in songs],
        "tags": [song.caption.split(", ") for song in SONGS],
        "norm_lyrics": [song.lyrics for song in SONGS],
        "recaption": [{"simplified": ""} for _ in songs],
        "speaker_emb_path": ["" for _ in songs],
    }
    datasets.Dataset.from_dict(columns).save_to_disk(str(folder))


@pytest.mark.slow
@pytest.mark.parametrize("backend", [LOCAL, HUB], ids=["local", "huggingface"])
def test_word_for_word(
    backend: str,
    tiny_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACESTEP_MLX_CACHE", str(tmp_path / "converted"))
    shutil.copytree(tiny_checkpoint, "ACE-Step/ACE-Step-v1-3.5B")
    songs = write_songs(tmp_path / ("datasets/my_audio_files" if backend is LOCAL else "songs"))
    if backend is HUB:
        _upstream_data_set(tmp_path / "Yi3852" / "ACEStep-Songs", songs)
    folder = Path("config/acestep-training-demo")
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(CONFIG)
    (folder / "multidatabackend.json").write_text(f"[{backend},\n{TEXT}]")

    with pytest.raises(SystemExit) as stop:
        main(["train", str(folder / "config.json"), "--max_train_steps=2"])
    out, err = capfd.readouterr()
    assert stop.value.code == 0, err
    assert "3 songs" in out + err
    trained = read_lora(tmp_path / "output" / "pytorch_lora_weights.safetensors")
    assert len(trained.modules) == 22  # both attentions of two blocks, and the lyric encoder's
    assert any(float(abs(m.delta()).max()) > 0 for m in trained.modules.values())
    steps = [json.loads(line) for line in Path("output/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in steps if row["event"] == "step"] == [1, 2]
    if backend is HUB:
        assert Path("cache/vae/ace_step/acestep-demo-data").is_dir()
    assert Path("cache/text/ace_step").is_dir()

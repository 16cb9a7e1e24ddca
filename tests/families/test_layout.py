"""Where a component is found in other programs' checkpoints."""

from __future__ import annotations

from pathlib import Path

from acestep_mlx.families import layouts
from acestep_mlx.families.layout import Layout, Place
from acestep_mlx.families.v15.layouts import DIFFUSERS, ORIGINAL, VARIANT
from acestep_mlx.families.v15.silence import SILENCE


def test_a_place_names_its_tensors_by_beginnings_or_whole_names() -> None:
    whole, part = Place("net"), Place("net", (("encoder.", ""), ("null_emb", "null")))
    assert whole.rename("anything.weight") == "anything.weight"
    assert part.rename("encoder.a.weight") == "a.weight" and part.rename("null_emb") == "null"
    assert part.rename("null_embedding") is None and part.rename("encoders.a") is None


def test_a_layout_is_known_by_its_folders_or_by_the_names_in_its_file(tmp_path: Path) -> None:
    folders = Layout("x", {"a": Place("one"), "b": Place("one"), "c": Place("two/three")}, beside=("v.json",))
    assert folders.folders == ["one", "two/three"] == folders.missing(tmp_path)
    (tmp_path / "one").mkdir()
    assert folders.missing(tmp_path) == ["two/three"] and not folders.marked(["one.weight"])
    assert {"one/config.json", "two/three/*.safetensors", "v.json"} <= set(folders.patterns)
    file = Layout("y", {"a": Place(names=(("a.", ""),))}, marks=("a.table",))
    assert file.one_file and file.marked(["b", "a.table.weight"]) and not file.marked(["a.weight"])


def test_no_download_takes_what_can_run() -> None:
    """The silence latent's archive holds a pickle, which is never unpickled."""
    for layout in (*(one for _, one in layouts()), DIFFUSERS, *ORIGINAL.values(), VARIANT):
        assert all(pattern.endswith((".json", ".safetensors", SILENCE)) for pattern in layout.patterns)


def test_the_original_of_v15_holds_four_components_in_one_folder() -> None:
    turbo = ORIGINAL["turbo"]
    assert turbo.folders == ["acestep-v15-turbo", "vae", "Qwen3-Embedding-0.6B"]
    owners = {
        name: [c for c, place in turbo.places.items() if "acestep" in place.folder and place.rename(name)]
        for name in ("decoder.norm_out.weight", "encoder.text_projector.weight", "null_condition_emb",
                     "tokenizer.quantizer.project_in.weight", "detokenizer.proj_out.weight", "lm.weight")
    }  # fmt: skip
    assert list(owners.values()) == [
        ["transformer"], ["condition_encoder"], ["condition_encoder"], ["audio_tokenizer"],
        ["audio_token_detokenizer"], [],
    ]  # fmt: skip

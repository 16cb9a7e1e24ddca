"""Names that people write, and names that files hold."""

from __future__ import annotations

from pathlib import Path

from acestep_mlx.convert.conversions import trained_on
from acestep_mlx.io.filenames import at_home


def test_a_tilde_is_the_home_folder_where_there_is_such_a_user() -> None:
    assert at_home("~/songs") == Path.home() / "songs"
    assert at_home("songs/~") == Path("songs/~")
    assert at_home("~la la la~") == Path("~la la la~")
    assert at_home(Path("~nobody-is-called-so/x")) == Path("~nobody-is-called-so/x")


def test_a_lora_may_name_any_model(tmp_path: Path) -> None:
    """It is somebody else's file: what it says of its base is compared, and never an error."""
    for base in ("~nobody-is-called-so/model", "a\0b", "", "/", "x" * 5000):
        assert trained_on("0" * 64, base, tmp_path / "a.safetensors") is None

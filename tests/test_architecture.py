"""The walls between the packages: imports point one way, and heavy or foreign ones stay where they belong."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath

import pytest

from acestep_mlx.families import layouts
from acestep_mlx.families.v1 import FAMILY
from acestep_mlx.families.v15 import ACEStep15

ROOT = Path(__file__).resolve().parents[1] / "acestep_mlx"
# A package may import from those on the same or a lower storey.
STOREY = {
    "errors": 0,
    "registry": 0,
    "formatting": 1,
    "io": 1,
    "text": 2,
    "config": 3,
    "nn": 3,
    "families": 4,
    "data": 5,
    "lora": 5,
    "sampling": 5,
    "report": 6,
    "testing": 6,
    "speech": 5,
    "convert": 7,
    "pipeline": 7,
    "training": 8,
    "doctor": 8,
    "cli": 9,
}
FOREIGN = {
    "torch",
    "diffusers",
    "peft",
    "accelerate",
    "simpletuner",
    "lycoris",
    "pickle",
    "torchaudio",
    "spacy",
}


def _own(path: Path) -> str:
    """The room of a module."""
    return path.relative_to(ROOT).with_suffix("").parts[0]


# `convert` is a link, which `rglob` does not follow.
FILES = sorted(p for p in {*ROOT.rglob("*.py"), *ROOT.glob("convert/*.py")} if "__pycache__" not in p.parts)


def _statements(path: Path) -> Iterator[tuple[str, list[str], int]]:
    """Of each import: the module as an absolute dotted name, what is taken from it, and its line."""
    package = ["acestep_mlx", *path.relative_to(ROOT).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, [], node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield module, [alias.name for alias in node.names], node.lineno


def _imports(path: Path) -> list[tuple[str, int]]:
    """Every imported module as an absolute dotted name, with its line; so too what may be one."""
    return [
        (name, line)
        for module, names, line in _statements(path)
        for name in (module, *(f"{module}.{one}" for one in names))
    ]


def _room(name: str) -> str | None:
    parts = name.split(".")
    return parts[1] if parts[0] == "acestep_mlx" and len(parts) > 1 and parts[1] in STOREY else None


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    parts = path.relative_to(ROOT).with_suffix("").parts
    own = parts[0]
    problems = []
    for name, line in _imports(path):
        top = name.split(".")[0]
        room = _room(name)
        if top in FOREIGN:
            problems.append(f"line {line}: {name} does not belong in the product")
        if top == "click" and own != "cli":
            problems.append(f"line {line}: click lives in cli/ alone")
        if own in STOREY and room is not None and STOREY[room] > STOREY[own]:
            problems.append(f"line {line}: {own} must not import {room}")
        if own == "nn" and room not in (None, "nn", "errors", "io"):
            problems.append(f"line {line}: a layer knows only mlx, io and errors, not {room}")
    assert not problems, "\n".join(problems)


def _late_attributes(tree: ast.Module) -> list[str]:
    """`Class.name` of each attribute that a method makes and neither `__init__` nor the class's body does."""
    found = []
    for kind in (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)):
        made: dict[str, set[str]] = {}
        for method in (node for node in kind.body if isinstance(node, ast.FunctionDef)):
            made[method.name] = {
                node.attr
                for node in ast.walk(method)
                if isinstance(node, ast.Attribute)
                and isinstance(node.ctx, ast.Store)
                and isinstance(node.value, ast.Name)
                and node.value.id == "self"
            }
        declared = [node for node in kind.body if isinstance(node, (ast.Assign, ast.AnnAssign))]
        born = made.get("__init__", set()) | {
            node.id for line in declared for node in ast.walk(line) if isinstance(node, ast.Name)
        }
        found += [f"{kind.name}.{name}" for name in sorted(set().union(*made.values()) - born)]
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_attribute_appears_outside_init(path: Path) -> None:
    late = _late_attributes(ast.parse(path.read_text(encoding="utf-8")))
    assert set(late) <= {"Velocity._run"}, late


def test_a_late_attribute_is_seen() -> None:
    source = "class A:\n x: int\n def __init__(self): self.y = 1\n def go(self): self.x = self.y = self.z = 2"
    assert _late_attributes(ast.parse(source)) == ["A.z"]


def _opens(tree: ast.Module) -> list[str]:
    """Calls that open a file for reading by its name: in a pipe's place they would wait for ever."""
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    found = []
    for call in calls:
        called = ast.unparse(call.func).rpartition(".")[2]
        modes = [ast.unparse(one) for one in (*call.args, *(word.value for word in call.keywords))]
        if called in ("read_bytes", "read_text") and isinstance(call.func, ast.Attribute):
            found.append(called)
        if called == "open" and any(mode.strip("'") in ("r", "rb", "rt", "r+b") for mode in modes):
            found.append("" if "handle" in modes else called)
    return [call for call in found if call]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_are_opened_where_a_pipe_in_their_place_is_refused(path: Path) -> None:
    found = _opens(ast.parse(path.read_text(encoding="utf-8")))
    assert not found, "use io.schema.open_file or read_file"


def test_an_open_file_is_seen() -> None:
    source = (
        "path.open('rb'); open(path, mode='r'); p.read_bytes(); self.path.read_text(); open(handle, 'rb')"
    )
    assert _opens(ast.parse(source)) == ["open", "open", "read_bytes", "read_text"]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_inside_the_package_are_relative(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    absolute = [
        node.lineno
        for node in ast.walk(tree)
        if (
            isinstance(node, ast.ImportFrom)
            and not node.level
            and (node.module or "").startswith("acestep_mlx")
        )
        or (isinstance(node, ast.Import) and any(a.name.startswith("acestep_mlx") for a in node.names))
    ]
    assert not absolute, f"lines {absolute}"


#: Where something of one model still stands outside families/.
OF_ONE_MODEL = {
    "sampling/record.py",  # the rates of files that are written
}
FAMILIES = tuple(f"acestep_mlx.families.{p.name}" for p in (ROOT / "families").iterdir() if p.is_dir())
#: v1's sample rate, longest song and samples in a frame; its batches' fields; its components
NUMBERS = {"44100", "44100.0", "240", "240.0", "512 * 8", "4096 / 44100", "44100 / 4096"}
NAMES = {"lyric_ids", "lyric_mask", "lyric_states", "latent_mask", "text_mask", "dcae", "vocoder", "umt5"}


def _of_one_model(path: Path) -> list[str]:
    """What a file outside families/ knows of one model: imports from its folder, its numbers and names."""
    found = [f"line {line}: imports {name}" for name, line in _imports(path) if name.startswith(FAMILIES)]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.BinOp, ast.Constant)) and ast.unparse(node).strip("'") in NUMBERS | NAMES:
            found.append(f"line {node.lineno}: {ast.unparse(node)}")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_what_is_true_of_one_model_stands_in_its_family(path: Path) -> None:
    name = path.relative_to(ROOT).as_posix()
    if name.split("/")[0] in ("families", "io", "testing", "report"):  # files and pictures have any numbers
        return
    found = _of_one_model(path)
    assert name in OF_ONE_MODEL or not found, "\n".join(found)


def test_what_is_true_of_one_model_is_seen() -> None:
    found = "\n".join(_of_one_model(ROOT / "families" / "v1" / "songs.py"))
    assert "'lyric_ids'" in found and "44100" not in found
    found = "\n".join(_of_one_model(ROOT / "families" / "v1" / "latents.py"))
    assert all(number in found for number in ("44100", "512 * 8", "240"))
    found = "\n".join(_of_one_model(ROOT / "families" / "__init__.py"))
    assert not found


#: Where a name of a component, or of a folder of a checkpoint, still stands outside families/.
NAMES_ALLOWED = {
    "cli/convert.py": "help of the flag that gives v1's tokenizer",
    "lora/formats/recognise.py": "the text encoders of image models",
    "pipeline.py": "the parts of a pipeline",
    "config/read_datasets.py": "SimpleTuner's name of a folder of caches",
    "config/run.py": "the same, in help",
}
OUTSIDE = [path for path in FILES if _own(path) not in ("families", "testing")]


@pytest.mark.parametrize("path", OUTSIDE, ids=lambda p: str(p.relative_to(ROOT)))
def test_components_and_checkpoints_are_named_in_families_alone(path: Path) -> None:
    where = path.relative_to(ROOT).as_posix()
    foreign = {name for one, layout in layouts() for name in (*one.components, *layout.folders)}
    source = path.read_text(encoding="utf-8")
    found = {
        name
        for name in foreign - {"", "transformer"}
        if re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", source)
    }
    assert bool(found) == (where in NAMES_ALLOWED), found or f"{where}: take it off the list"


def _circles(imports: Mapping[str, set[str]]) -> list[list[str]]:
    """Groups of modules each of which leads to every other one of its group by imports."""
    reached: dict[str, set[str]] = {}
    for start in imports:
        found, waiting = set(), [start]
        while waiting:
            new = imports[waiting.pop()] - found
            found |= new
            waiting += new
        reached[start] = found
    within = {one: frozenset(other for other in reached[one] if one in reached[other]) for one in imports}
    return sorted(sorted(group) for group in set(within.values()) if group)


def _module(path: Path) -> str:
    parts = ("acestep_mlx", *path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_no_imports_go_in_a_circle() -> None:
    """Those inside functions and for the type checker alone included."""
    modules = {_module(path): path for path in FILES}
    imports = {}
    for own, path in modules.items():
        named = [(module, f"{module}.{n}") for module, names, _ in _statements(path) for n in names or [""]]
        found = {inner if inner in modules else module for module, inner in named}
        imports[own] = (found & modules.keys()) - {own}
    assert not _circles(imports)


def test_a_circle_is_seen() -> None:
    walk = {"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set(), "e": {"a"}}
    assert _circles(walk) == [["b", "c"]]


def test_the_walls_are_seen() -> None:
    """The reader of imports finds what it is meant to find."""
    names = {name for name, _ in _imports(ROOT / "cli" / "demo.py")}
    assert {"click", "acestep_mlx.errors", "acestep_mlx.testing.demo_songs"} <= names


def test_help_is_light() -> None:
    """What it takes is counted in modules: about 120 with click's."""
    code = (
        "import sys, acestep_mlx.cli as c\n"
        "try: c.main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'mlx', 'numpy', 'transformers', 'soundfile', 'mlx_lm'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "assert len(sys.modules) < 160, sorted(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


#: Names that two files may have outside the families: what one declares or tells, the other makes or draws.
PAIRS = {
    "cache": ("data", "cli"),
    "events": ("report", "cli"),
    "optimizers": ("config", "training"),
    "progress": ("io", "cli"),
    "run": ("config", "training"),
}
#: Shared files to which a file of the same name in each family's folder answers.
ANSWERED = {"config": "nn", "keymap": "families", "memory": "training", "songs": "families"}


def _shared_names(files: Iterable[str]) -> set[str]:
    """Names of files that stand twice, outside the folders of families, which have one shape; or in such a
    folder and outside."""
    outside, own = Counter[str](), set()
    for path in map(PurePosixPath, files):
        if path.name != "__init__.py" and path.parts[0] == "families" and len(path.parts) > 2:
            own.add(path.stem)
        elif path.name != "__init__.py":
            outside[path.stem] += 1
    return {name for name, times in outside.items() if times > 1 or name in own}


def test_a_name_is_one_thing() -> None:
    files = [path.relative_to(ROOT).as_posix() for path in FILES]
    assert _shared_names(files) == PAIRS.keys() | ANSWERED.keys()
    for name, rooms in (*PAIRS.items(), *((name, (room,)) for name, room in ANSWERED.items())):
        there = {_own(p) for p in FILES if p.stem == name and (_own(p) != "families" or "families" in rooms)}
        assert there == set(rooms), name


def test_a_name_of_two_things_is_seen() -> None:
    files = ["data/folder.py", "convert/folder.py", "families/v1/dit.py", "families/v15/dit.py", "io/png.py"]
    assert _shared_names(files) == {"folder"}
    assert _shared_names(["families/v1/read.py", "config/read.py", "config/__init__.py"]) == {"read"}


def _read_options(path: Path, of_one_family: Mapping[str, str]) -> list[str]:
    """The options of a single family that a file reads, other than those of its own."""
    own = path.parts[path.parts.index("families") + 1] if "families" in path.parts else ""
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    read = [node.attr for node in nodes if isinstance(node, ast.Attribute)]
    return [name for name in read if of_one_family.get(name, own) != own]


def test_options_of_one_family_are_read_in_its_folder() -> None:
    known = (FAMILY, ACEStep15())
    told = {name for family in known for name in (*family.unused, *family.refused)}
    users = {name: [f.name for f in known if name not in {*f.unused, *f.refused}] for name in told}
    of_one_family = {name: names[0] for name, names in users.items() if len(names) == 1}
    assert of_one_family["lyrics_embedder_train"] == "v1"
    # what a clip is asked for is a request, and what a family makes of a request is its own to say
    of_one_family = {name: of for name, of in of_one_family.items() if not name.startswith("validation_")}
    assert not {path: read for path in FILES if (read := _read_options(path, of_one_family))}


def test_an_option_of_another_family_is_seen() -> None:
    v1 = ROOT / "families" / "v1" / "lyrics_embedder.py"
    assert not _read_options(v1, {"lyrics_embedder_train": "v1"})
    assert _read_options(v1, {"lyrics_embedder_train": "v15"}) == ["lyrics_embedder_train"]


def test_hashes_are_made_in_one_place() -> None:
    users = [p.relative_to(ROOT).as_posix() for p in FILES if "hashlib" in {name for name, _ in _imports(p)}]
    assert users == ["io/hashes.py"]


def test_the_home_folder_is_looked_up_in_one_place() -> None:
    """A name that begins with `~` and is nobody's is a RuntimeError there."""
    users = [p.relative_to(ROOT).as_posix() for p in FILES if ".expanduser(" in p.read_text(encoding="utf-8")]
    assert users == ["io/filenames.py"]


SCREEN = 60  # lines


def _long_functions(tree: ast.Module) -> list[str]:
    functions = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))
    return [node.name for node in functions if (node.end_lineno or 0) - node.lineno >= SCREEN]


def test_a_function_fits_on_a_screen() -> None:
    long = {p: _long_functions(ast.parse(p.read_text(encoding="utf-8"))) for p in FILES}
    assert not {path: names for path, names in long.items() if names}


def test_a_long_function_is_seen() -> None:
    body = "    pass\n"
    assert _long_functions(ast.parse(f"def a():\n{body * 59}")) == []
    assert _long_functions(ast.parse(f"def a():\n{body * 60}")) == ["a"]

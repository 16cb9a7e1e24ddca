"""The page as somebody sees and hears it: clips are played, compared, and kept while the run goes on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from acestep_mlx.config.read_run import load_config
from acestep_mlx.io.audio import write_audio
from acestep_mlx.report.page import About, Song, write_live, write_report

from ..browser import AXE, Browser, browser, needed

pytestmark = pytest.mark.slow
EVIL = """</script><img src=x onerror="hacked=1"><u>'Böse'</u>"""
SECONDS = 3.0
#: of one the browser looks for news every five seconds; here a dozen times in that time
SOONER = "const slowly = setInterval; setInterval = (work, time) => slowly(work, time / 12)"
RUNNING = "!players[chosen.dataset.clip].paused"
HEARD = "[chosen.dataset.clip, players[chosen.dataset.clip].currentTime]"
AUDIBLE = "Object.keys(players).filter(id => !players[id].paused)"


def clip(folder: Path, step: int, name: str, level: float, with_lora: bool = True) -> dict[str, Any]:
    """A row of metrics.jsonl, and its sound: a sweep."""
    path = folder / f"{step}-{len(name)}-{with_lora}.wav"
    if not path.is_file():
        time = np.arange(round(SECONDS * 44100)) / 44100
        tone = 0.1 * np.sin(2 * np.pi * (200 + 20 * step + 300 * time) * time)
        write_audio(path, tone[:, None].repeat(2, 1), 44100)
    row = {
        "event": "clip",
        "step": step,
        "name": name,
        "prompt": f"{name}, calm",
        "path": str(path),
        "seed": 7,
    }
    return {**row, "with_lora": with_lora, "lyrics": f"[verse]\n{EVIL}\n", "loudness": level}


def step_row(n: int) -> dict[str, Any]:
    numbers = {"loss": 1 / n, "smoothed_loss": 2 / n, "learning_rate": 1e-4, "grad_norm": 1.0 + n}
    rates = {"steps_per_second": 1.0, "audio_seconds_per_second": 9.0 + n, "eta": 600.0, "elapsed": 3.0}
    return {
        "event": "step",
        "step": n,
        "peak_memory": 10**9,
        "epoch": n,
        **numbers,
        **rates,
        "skipped": False,
    }


class Site:
    """A run whose page is written as it goes on."""

    def __init__(self, folder: Path, sounds: Path) -> None:
        self.folder, self.page, self.sounds = folder, folder / "report.html", sounds
        self.rows: list[dict[str, Any]] = []
        songs = [
            Song("my songs/one.wav", 200.0, ["calm, piano", EVIL], EVIL),
            Song("my songs/two.wav", 90.0, [], None),
        ]
        self.about = About(running=True, total=20, songs=songs, best=str(folder / "checkpoint-2"))
        self.config = load_config({"tracker_run_name": "Evening", "max_train_steps": 20})

    def goes_on(self, *rows: dict[str, Any], page: bool = True) -> None:
        """More rows; the page and its news follow."""
        self.rows += rows
        (self.folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in self.rows))
        if page:
            write_report(self.folder, self.config, self.about)
        write_live(self.folder, self.config, self.about)


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sounds")


@pytest.fixture
def site(tmp_path: Path, sounds: Path) -> Site:
    """Six steps; two prompts with a base and the steps 2 and 4, the second 6 dB louder than the base."""
    site = Site(tmp_path, sounds)
    bins = {"0-200": 0.2, "200-400": 0.4}
    losses = [(0, 0.9), (2, 0.7), (4, 0.8)]
    evals = [
        {"event": "eval", "step": n, "loss": x, "bins": {k: x * v for k, v in bins.items()}}
        for n, x in losses
    ]
    clips = [
        clip(sounds, step, name, level, with_lora=step > 0)
        for name in ("folk", EVIL)
        for step, level in ((0, -20.0), (2, -17.0), (4, -14.0))
    ]
    site.goes_on(*(step_row(n) for n in range(1, 7)), *evals, *clips)
    return site


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("profile")) as tab:
        tab.send("Page.addScriptToEvaluateOnNewDocument", source=SOONER)
        yield tab


@pytest.fixture
def tab(chromium: Browser, site: Site) -> Iterator[Browser]:
    """The page, open. It asks for nothing but itself and its news, and nothing in its scripts fails."""
    chromium.requests.clear()
    chromium.open(site.page)
    yield chromium
    assert chromium.js("typeof hacked") == "undefined" and not chromium.js("document.querySelector('u')")
    asked = {url.partition("?")[0] for url in chromium.requests if not url.startswith(("data:", "blob:"))}
    assert asked <= {site.page.as_uri(), (site.folder / "report_live.js").as_uri()}
    assert not chromium.errors
    chromium.send("Page.navigate", url="about:blank")


def text(tab: Browser, selector: str) -> str:
    return str(tab.js(f"document.querySelector({json.dumps(selector)}).innerText"))


def pressed(tab: Browser) -> list[str]:
    """The buttons that are down, as they are called: of the table, and of the player."""
    return list(
        tab.js("[...document.querySelectorAll('[aria-pressed=true]')].map(b => b.ariaLabel ?? b.textContent)")
    )


def test_listening_to_a_step_and_comparing_keeps_the_place(tab: Browser) -> None:
    assert pressed(tab) == ["Step 2", "folk, Step 2: 3 s · seed 7"], (
        "the best step of the first prompt, ready"
    )
    assert text(tab, ".hears") == "folk folk, calm" and not tab.js(AUDIBLE)
    tab.click("[data-clip='0-4']")
    tab.wait(f"{RUNNING} && players['0-4'].currentTime > 0.5")
    assert pressed(tab) == ["Step 4", "folk, Step 4: 3 s · seed 7"] and text(tab, "#length") == "0:03"
    assert tab.js("$('play').ariaLabel") == "Pause"
    for press, id in (("b", "0-base"), ("b", "0-4"), ("ArrowLeft", "0-2"), ("ArrowLeft", "0-base")):
        before = tab.js(HEARD)[1]
        tab.key(press)
        now, place = tab.js(HEARD)
        assert now == id and before - 0.05 <= place < before + 1, "goes on where the other was"
        assert tab.js(AUDIBLE) == [id], "one at a time"
    tab.click("#with")
    assert tab.js(HEARD)[0] == "0-2", "the step that was heard last"
    tab.click("#play")
    assert not tab.js(AUDIBLE)
    tab.js("$('place').value = 2.2; $('place').oninput()")
    tab.click("#without")
    assert tab.js(HEARD) == ["0-base", pytest.approx(2.2, abs=0.05)], "at rest too"


def test_the_place_is_moved_by_keys_second_by_second(tab: Browser) -> None:
    tab.click("[data-clip='0-2']")
    tab.click("#play")
    tab.js("players['0-2'].currentTime = 0.5; $('place').focus()")
    tab.key("ArrowRight")
    assert tab.js(HEARD) == ["0-2", pytest.approx(1.5, abs=0.05)]
    tab.wait("$('place').getAttribute('aria-valuetext') === '0:01 of 0:03'")
    tab.key("ArrowLeft")
    assert tab.js(HEARD) == ["0-2", pytest.approx(0.5, abs=0.05)]


def test_another_prompt_begins_at_its_beginning(tab: Browser) -> None:
    tab.click("[data-clip='0-4']")
    tab.wait(f"{RUNNING} && players['0-4'].currentTime > 0.5")
    tab.key("ArrowDown")
    assert tab.js(HEARD) == ["1-4", pytest.approx(0, abs=0.4)] and tab.js(AUDIBLE) == ["1-4"]
    assert text(tab, "#name") == EVIL
    tab.key("ArrowDown")
    assert tab.js(HEARD)[0] == "1-4", "there is none below"
    tab.key("ArrowUp")
    assert tab.js(HEARD)[0] == "0-4"


def test_clips_are_equally_loud_unless_one_does_not_want_it(tab: Browser) -> None:
    volumes = {}
    for id in ("0-base", "0-2", "0-4"):
        tab.click(f"[data-clip='{id}']")
        volumes[id] = tab.js("players[chosen.dataset.clip].volume")
    expected = {"0-base": 0.0, "0-2": -3.0, "0-4": -6.0}
    assert {id: 20 * np.log10(v) for id, v in volumes.items()} == pytest.approx(expected, abs=0.01)
    tab.click("#match")
    assert tab.js("players[chosen.dataset.clip].volume") == 1


def test_spectrograms_have_seconds_and_kilohertz(tab: Browser) -> None:
    tab.wait("$('seconds').children.length > 2 && $('picture').naturalWidth > 200")
    assert text(tab, "#seconds").split() == ["0", "s", "1", "2", "3"]
    assert text(tab, ".kilohertz").split() == ["kHz", "0.5", "1", "2", "4", "8"]
    middle = tab.js(
        "(s => (r => r.bottom - r.height / 2)(s.getBoundingClientRect()))($('picture').parentNode)"
    )
    places = tab.js("[...document.querySelectorAll('.kilohertz span')].map(s => s.getBoundingClientRect().y)")
    assert places == sorted(places, reverse=True) and places[0] > middle > places[-1], "high notes above"


def test_numbers_follow_the_run_while_a_clip_plays(tab: Browser, site: Site) -> None:
    """Nothing is loaded anew then; new clips wait until one asks for them, and the place is kept."""
    tab.js("window.same = true; document.querySelectorAll('details').forEach(d => d.open = true)")
    tab.click("[data-clip='0-4']")
    tab.wait("players['0-4'].currentTime > 0.5")
    site.goes_on(step_row(7), page=False)
    tab.wait("$('status').innerText.includes('7 of 20 steps')")
    site.goes_on(step_row(8), clip(site.sounds, 6, "folk", -14.0))
    tab.wait("!$('news').hidden")
    assert tab.js("window.same") and "8 of 20 steps" in text(tab, "#status")
    assert tab.js("[...document.querySelectorAll('details')].every(d => d.open)")
    tab.click("[data-clip='0-4']")
    assert not tab.js(AUDIBLE)
    place = tab.js(HEARD)[1]
    tab.click("#news button")
    tab.wait("window.same === undefined && document.querySelector('[data-clip=\"0-6\"]')")
    assert tab.js(HEARD) == ["0-4", pytest.approx(place, abs=0.05)] and tab.js("$('news').hidden")


def test_new_clips_come_by_themselves_while_nobody_listens_and_a_finished_run_is_left_alone(
    tab: Browser, site: Site
) -> None:
    tab.js("window.same = true")
    site.goes_on(clip(site.sounds, 6, "folk", -14.0))
    tab.wait("window.same === undefined && document.querySelector('[data-clip=\"0-6\"]')")
    site.rows.append(clip(site.sounds, 8, "folk", -14.0))
    site.about = About(running=False, total=20)
    tab.js("window.same = true")
    site.goes_on(step_row(20))
    tab.wait("window.same === undefined && $('status').innerText.includes('Done: 20 steps')")
    assert tab.js("document.body.dataset.live") == "" and "\u200bundefined" not in text(tab, "body")
    tab.requests.clear()
    tab.js("new Promise(done => slowly(done, 1000))")
    assert not tab.requests


def test_a_page_that_is_older_than_its_news_is_not_loaded_again_and_again(tab: Browser, site: Site) -> None:
    tab.js("window.same = true")
    site.goes_on(clip(site.sounds, 6, "folk", -14.0), page=False)
    tab.wait("window.same === undefined && document.readyState === 'complete'")
    tab.js("window.same = true")
    site.goes_on(step_row(9), page=False)
    tab.wait("$('status').innerText.includes('9 of 20 steps')")
    assert tab.js("window.same")


def test_numbers_are_read_off_a_curve_with_the_pointer(tab: Browser) -> None:
    box = "document.querySelector('[data-title=\"Training loss\"]').getBoundingClientRect()"
    tab.js("document.querySelector('[data-title=\"Training loss\"]').scrollIntoView({block: 'center'})")
    x, y = tab.js(f"(b => [b.right - 20, b.y + b.height / 2])({box})")
    tab.send("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
    assert text(tab, ".tip").split("\n") == ["step 6", "each step 0.1667", "smoothed 0.3333"]
    tab.send("Input.dispatchMouseEvent", type="mouseMoved", x=5, y=5)
    assert not tab.js("document.querySelector('.tip')")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize(("width", "height"), [(390, 844), (1280, 900)], ids=["phone", "desktop"])
def test_nothing_serious_bars_anyone(tab: Browser, dark: bool, width: int, height: int) -> None:
    """axe-core's judgement; and the page is as wide as the screen, down to the smallest phone."""
    tab.screen(width, height, dark)
    tab.js("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert tab.js("getComputedStyle(document.body).backgroundColor") == (
        "rgb(21, 21, 24)" if dark else "rgb(247, 246, 243)"
    )
    tab.send("Runtime.evaluate", expression=needed(AXE).read_text(encoding="utf-8"))
    found = tab.js("axe.run().then(r => ({passes: r.passes.length, violations: r.violations}))")
    assert found["passes"] > 15
    serious = [
        f"{v['id']}: {n['html'][:120]} {n['failureSummary']}"
        for v in found["violations"]
        for n in v["nodes"]
        if v["impact"] in ("serious", "critical")
    ]
    assert not serious, "\n".join(serious)
    for size in (width, 320):
        tab.screen(size, height, dark)
        assert tab.js("document.documentElement.scrollWidth") <= size

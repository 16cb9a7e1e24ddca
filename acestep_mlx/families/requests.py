"""What one model makes of what a song is asked for with: its own defaults, and what it does not have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..config.request import TASKS, Request
from ..errors import ConfigError

if TYPE_CHECKING:
    from .protocol import Family, Folder, SongSettings


def request_for(
    family: Family,
    folder: Folder | None,
    values: Mapping[str, Any],
    where: str = "",
    *,
    literal: bool = False,
) -> Request:
    """The request of these settings; the others are the model's own defaults, and so are those that change
    nothing with this model. literal: with the defaults of Python's `generate`.

    ConfigError for a task that the model does not have, and for settings that nobody has.
    """
    settings = family.song_settings(folder)
    own = {**settings.defaults, **(settings.literal if literal else {})}
    if values.get("task") in TASKS:
        check_task(family, settings, values["task"])
    idle = {name: value for name, value in values.items() if name in settings.idle}
    Request.from_dict(idle, where, family.latents)  # what changes nothing is still no nonsense
    used = settings.read({name: value for name, value in values.items() if name not in idle})
    return Request.from_dict({**own, **used}, where, family.latents)


def check_task(family: Family, settings: SongSettings, task: str) -> None:
    """ConfigError for a task that the model does not have."""
    if task not in settings.tasks:
        raise ConfigError(f"{family.title} has no task {task}; choose one of {', '.join(settings.tasks)}")


class Plain:
    """The surface of a family whose pipeline has nothing beside what all have."""

    def arguments(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments of `generate` as `Request` calls them."""
        return dict(values)

"""MuJoCo, the same for every family that stands on it: import, building without noise, pictures."""

from __future__ import annotations

import contextlib
import ctypes.util
import os
import sys
from collections.abc import Iterator
from typing import Any

from expertise.errors import DeviceError, ExpertiseError, first_line, nearest
from expertise.policy.envs.simulator import BlownUpError
from expertise.policy.extras import needed, quiet

_HINTS = (
    "install a software renderer (Debian, Ubuntu: apt install libegl1 libgl1-mesa-dri)",
    "or set MUJOCO_GL=egl (or osmesa) before Python starts",
)

_GL, _PYOPENGL = "MUJOCO_GL", "PYOPENGL_PLATFORM"
_WAYS = ("egl", "osmesa", "glfw", "glx", "cgl", "wgl")
_ON = ("", "enable", "enabled", "on", "true", "1")
_OFF = ("disable", "disabled", "off", "false", "0")
_trouble: list[str] = []
"""Why MuJoCo, as it was imported, cannot render."""


def import_mujoco(what: str) -> Any:
    """The package mujoco, told to render without a window where there is no display.

    It looks for a way to render when it is imported, and not again. Where the one that MUJOCO_GL names does
    not work it is imported without any: it simulates, and pictures are refused with the reason.

    Raises:
        MissingExtra: it is not installed.
        DeviceError: MUJOCO_GL names no way to render.
    """
    if "mujoco" in sys.modules:
        return sys.modules["mujoco"]
    headless = sys.platform.startswith("linux") and not (
        os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    )
    if headless and _GL not in os.environ:
        for backend, library in (("egl", "EGL"), ("osmesa", "OSMesa")):
            if ctypes.util.find_library(library):
                os.environ[_GL] = backend
                break
    way = os.environ.get(_GL, "").strip().lower()
    if way not in (*_WAYS, *_ON, *_OFF):
        raise DeviceError(f"{_GL}={way} names no way to render", nearest(way, _WAYS), f"or unset {_GL}")
    before = os.environ.get(_PYOPENGL)
    try:
        mujoco = needed("mujoco", what)
    except ExpertiseError:
        raise
    except Exception as error:  # each way has its own
        _without_pictures(way, first_line(error))
        # What was imported halfway would be taken for whole.
        for name in [name for name in sys.modules if name.partition(".")[0] in ("mujoco", "OpenGL")]:
            del sys.modules[name]
        os.environ.pop(_PYOPENGL, None)
        if before is not None:
            os.environ[_PYOPENGL] = before
        return needed("mujoco", what)
    if way in _OFF:
        _trouble.append(f"{_GL}={way} turns it off")
    elif not hasattr(mujoco, "Renderer"):
        _without_pictures(way, "its libraries are missing")
    return mujoco


def _without_pictures(way: str, reason: str) -> None:
    # For others, too, who look for a way to render when they are imported.
    os.environ[_GL] = _OFF[0]
    _trouble.append(f"{_GL}={way} does not work: {reason}")


@contextlib.contextmanager
def building() -> Iterator[None]:
    """Say nothing while MuJoCo reads an old model."""
    with without_log(), quiet():
        yield


@contextlib.contextmanager
def without_log() -> Iterator[None]:
    """Keep MuJoCo from writing a file of warnings into the working folder."""
    import mujoco

    mujoco.set_mju_user_warning(_pass_over)
    try:
        yield
    finally:
        mujoco.set_mju_user_warning(None)


@contextlib.contextmanager
def stepping(data: Any) -> Iterator[None]:
    """Around one step: nothing is logged, and a simulation that ran away is told.

    MuJoCo itself goes on from a fresh state then, and only counts that.

    Args:
        data: mujoco.MjData.

    Raises:
        BlownUpError: positions, velocities or accelerations ran away.
    """
    import mujoco

    kinds = slice(mujoco.mjtWarning.mjWARN_BADQPOS, mujoco.mjtWarning.mjWARN_BADQACC + 1)
    counts = data.warning.number
    counts[kinds] = 0
    with without_log():
        yield
    if counts[kinds].any():
        raise BlownUpError


def _pass_over(_message: str) -> None:
    pass


class MuJoCoCamera:
    """Takes pictures of one model; the renderer is made when the first is taken.

    Args:
        model: mujoco.MjModel.
        data: mujoco.MjData.
        camera: the number or the name of a camera of the model, or -1 for a free one.
    """

    def __init__(self, model: Any, data: Any, camera: int | str = -1) -> None:
        self._model, self._data, self._camera = model, data, camera
        self._renderer: Any = None
        self._size = (0, 0)

    def frame(self, width: int, height: int) -> Any:
        """A picture, uint8 [height, width, 3].

        Raises:
            DeviceError: nothing can be rendered here.
        """
        if self._size != (width, height):
            self.close()
            self._renderer = self._make(width, height)
            self._size = (width, height)
        self._renderer.update_scene(self._data, camera=self._camera)
        return self._renderer.render()

    def close(self) -> None:
        """Give the renderer back."""
        if self._renderer is not None:
            self._renderer.close()
        self._renderer, self._size = None, (0, 0)

    def _make(self, width: int, height: int) -> Any:
        import mujoco

        if _trouble:
            raise DeviceError(f"nothing can be rendered here: {_trouble[0]}", *_HINTS)
        # The picture must fit into the model's buffer.
        self._model.vis.global_.offwidth = max(width, self._model.vis.global_.offwidth)
        self._model.vis.global_.offheight = max(height, self._model.vis.global_.offheight)
        try:
            with quiet():
                return mujoco.Renderer(self._model, height, width)
        except Exception as error:  # each backend has its own
            raise DeviceError(f"nothing can be rendered here: {first_line(error)}", *_HINTS) from None

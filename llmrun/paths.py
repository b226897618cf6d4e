"""Where things are kept, as the system has it; LLMRUN_HOME and LLMRUN_CONFIG_DIR move them, HF_* the hub's cache."""

from __future__ import annotations

import os
import sys
from pathlib import Path

_LINUX = sys.platform.startswith("linux")


def hub_cache() -> Path:
    """The hub's cache, by the same environment variables and in the same order as huggingface_hub reads them."""
    if found := os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE"):
        return _expanded(found)
    if home := os.environ.get("HF_HOME"):
        return _expanded(home) / "hub"
    return _expanded(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface" / "hub"


def imported_models() -> Path:
    """The folder of imported models."""
    return _in_home("models") or _user_folder("XDG_DATA_HOME", "~/.local/share", "user_data_path") / "models"


def state() -> Path:
    """The folder of what is remembered: of models, conversations, benches."""
    return _in_home("state") or _user_folder("XDG_STATE_HOME", "~/.local/state", "user_state_path")


def config() -> Path:
    """The folder of the user's own files."""
    if folder := os.environ.get("LLMRUN_CONFIG_DIR"):
        return Path(folder).expanduser()
    return _user_folder("XDG_CONFIG_HOME", "~/.config", "user_config_path")


def cache() -> Path:
    """The folder of what can be made again."""
    return _in_home("cache") or _user_folder("XDG_CACHE_HOME", "~/.cache", "user_cache_path")


def runtime() -> Path:
    """The folder of what is of use only while somebody runs."""
    if (there := _in_home("run")) is not None:
        return there
    folder = os.environ.get("XDG_RUNTIME_DIR", "").strip()
    return Path(folder) / "llmrun" if folder else state() / "run"


def _in_home(name: str) -> Path | None:
    home = os.environ.get("LLMRUN_HOME")
    return _expanded(home) / name if home else None


def _user_folder(variable: str, usual: str, elsewhere: str) -> Path:
    """As platformdirs has it, whose import takes 7 ms: it is asked only where the answer is not that of Linux."""
    if _LINUX:
        return Path(os.environ.get(variable, "").strip() or usual).expanduser() / "llmrun"
    import platformdirs

    return Path(getattr(platformdirs, elsewhere)("llmrun"))


def _expanded(path: str) -> Path:
    return Path(os.path.expandvars(path)).expanduser()

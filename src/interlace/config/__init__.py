"""`interlace.yaml` plus environment → one frozen `Settings` per load. Read once, no I/O afterwards."""

from interlace.config.engines import ENGINES, OPENAI, PRESETS, PROVIDERS, REMOTE
from interlace.config.reader import (
    ENVIRONMENT,
    Problem,
    SettingDoc,
    check_config,
    find_config,
    load_settings,
    settings_reference,
)
from interlace.config.settings import (
    DEFAULT_MODEL,
    GuardSettings,
    LedgerSettings,
    LimitSettings,
    LogSettings,
    ModelSettings,
    PerMillion,
    PlanSettings,
    PriceSettings,
    SecretSettings,
    Settings,
)

__all__ = [
    "DEFAULT_MODEL",
    "ENGINES",
    "ENVIRONMENT",
    "GuardSettings",
    "LedgerSettings",
    "LimitSettings",
    "LogSettings",
    "ModelSettings",
    "OPENAI",
    "PRESETS",
    "PROVIDERS",
    "PerMillion",
    "PlanSettings",
    "PriceSettings",
    "Problem",
    "REMOTE",
    "SecretSettings",
    "SettingDoc",
    "Settings",
    "check_config",
    "find_config",
    "load_settings",
    "settings_reference",
]

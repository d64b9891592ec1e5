"""`interlace.yaml` plus environment → one frozen `Settings` per load. Read once, no I/O afterwards."""

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
    ResponseSettings,
    SecretSettings,
    Settings,
)

__all__ = [
    "DEFAULT_MODEL",
    "ENVIRONMENT",
    "GuardSettings",
    "LedgerSettings",
    "LimitSettings",
    "LogSettings",
    "ModelSettings",
    "PerMillion",
    "PlanSettings",
    "PriceSettings",
    "Problem",
    "ResponseSettings",
    "SecretSettings",
    "SettingDoc",
    "Settings",
    "check_config",
    "find_config",
    "load_settings",
    "settings_reference",
]

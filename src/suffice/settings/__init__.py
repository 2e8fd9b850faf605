"""All settings as one frozen tree of tables. Pure: `wiring` reads files and the environment.

Every field has its unit in its name or comment, and a safe default.
"""

from __future__ import annotations

from suffice.settings.limits import *  # noqa: F403 - the types of their values
from suffice.settings.parsing import parse_settings as parse_settings
from suffice.settings.tables import *  # noqa: F403 - every table and type of the settings

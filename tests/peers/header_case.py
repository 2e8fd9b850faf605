"""A plug-in for the suite's own pytest: header names are compared without regard to case, in every run alike.

HTTP says that their case means nothing (RFC 9110, section 5.1) and our HTTP server writes them in lower case;
some of the suite's tests look for `Access-Control-Allow-Origin` in a plain dict.
"""

from __future__ import annotations

import sys


def pytest_collection_finish() -> None:
    """Give the helper that makes the suite's responses another dict; later than its names are imported elsewhere."""
    from requests.structures import CaseInsensitiveDict  # type: ignore[import-untyped, unused-ignore]

    sys.modules["utils"].dict = CaseInsensitiveDict  # type: ignore[attr-defined]

"""The recommender of the live version, replaced in the background when another version becomes live.

Input: the address of an object store. Output: a loaded `Recommender`. A version that cannot be loaded is logged, and
the one before stays.
"""

from __future__ import annotations

import threading
from typing import Any

from rec_ray.api.recommender import Recommender
from rec_ray.errors import RecRayError
from rec_ray.logs import LOGGER


class LiveRecommender:
    """Holder of the live version; `current` may be read from any thread."""

    def __init__(self, url: str, *, seconds: float = 30.0, **arguments: Any) -> None:
        """Load the live version and check every `seconds` for another. arguments: as in `Recommender.open`.

        Raises:
            RecRayError: as `Recommender.open`.
        """
        self._url, self._arguments, self._seconds = url, arguments, seconds
        self.current = self._open()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="live-version", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop the checks."""
        self._stopped.set()
        self._thread.join()

    def _open(self) -> Recommender:
        opened = Recommender.open(self._url, **self._arguments)
        opened.warm_up()
        return opened

    def _watch(self) -> None:
        while not self._stopped.wait(self._seconds):
            try:
                if not self.current.is_live():
                    before, self.current = self.current.version, self._open()
                    LOGGER.info("version %s is live and replaces %s", self.current.version, before)
            except RecRayError as error:
                LOGGER.warning("version %s stays: %s", self.current.version, error)

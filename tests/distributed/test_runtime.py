"""What a run finds out about its surroundings before the first step."""

import logging
from pathlib import Path

import pytest

from rec_ray.config import Settings
from rec_ray.config.loading import load_settings
from rec_ray.distributed.runtime import check_gpus
from rec_ray.errors import ConfigError

pytestmark = [pytest.mark.usefixtures("processes"), pytest.mark.usefixtures("local_ray")]


def settings_of(folder: Path, *changes: str) -> Settings:
    from rec_ray.sample.project import init_project

    init_project(folder)
    return load_settings(folder / "rec_ray.yaml", list(changes), environ={})


def test_gpus_that_are_not_there_are_missed_before_a_step_waits_for_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    wanting = settings_of(tmp_path / "shop", "candidates.use_gpu=true")
    with pytest.raises(ConfigError, match=r"candidates\.use_gpu: this machine has no GPU"):
        check_gpus(wanting, can_come=False)
    with caplog.at_level(logging.WARNING):
        check_gpus(wanting, can_come=True)
    assert "candidates.use_gpu: Ray has no GPU yet" in caplog.text
    check_gpus(load_settings(tmp_path / "shop" / "rec_ray.yaml", environ={}), can_come=False)

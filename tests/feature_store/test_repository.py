"""No error about feature_store.yaml shows what is in it."""

from pathlib import Path

import pytest

from rec_ray.config import Settings
from rec_ray.errors import ConfigError, RecRayError
from rec_ray.runs.context import open_feature_store

WHOLE = "project: shop\nprovider: local\nregistry: registry.db\nonline_store:\n  type: redis\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (WHOLE + "  connection_string: 'host:6379,password=hunter2\n", "line 7, column"),
        (WHOLE + "  password: *hunter2\n", "line 6, column 13"),
        (WHOLE + "  password: @hunter2\n", "line 6, column 13"),
        (WHOLE + "  password: hunter2: more\n", "line 6, column"),
        (WHOLE + "  password: ${SHOP_PASSWORD}\n", "line 6, column"),
        ("hunter2", "no mapping"),
        ("a: " + "[" * 50_000 + "hunter2", "not valid YAML"),
        ("a: \x00hunter2", "not valid YAML"),
        (WHOLE.replace("shop", "[hunter2, hunter2]"), "cannot be"),
        (WHOLE + f"  password: hunter2\n  key_ttl_seconds: hunter2{'x' * 60}\n", "cannot be"),
    ],
)
def test_what_is_wrong_is_said_without_the_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, said: str
) -> None:
    monkeypatch.setenv("SHOP_PASSWORD", "hunter2: {")
    (tmp_path / "feature_store.yaml").write_text(text, encoding="utf-8")
    settings = Settings.model_validate({"feast": {"repo": str(tmp_path)}, "storage": {"url": str(tmp_path)}})
    with pytest.raises(RecRayError, match=said) as caught:
        open_feature_store(settings)
    assert "hunter2" not in str(caught.value) and caught.value.__cause__ is None
    assert "\n" not in str(caught.value)


def test_a_variable_that_is_not_set_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = WHOLE.replace("redis", "postgres") + "  host: ${SHOP_HOST}\n  port: ${SHOP_PORT}  # not ${THIS}\n"
    (tmp_path / "feature_store.yaml").write_text(text, encoding="utf-8")
    monkeypatch.setenv("SHOP_HOST", "here")
    settings = Settings.model_validate({"feast": {"repo": str(tmp_path)}, "storage": {"url": str(tmp_path)}})
    with pytest.raises(ConfigError, match=r"it contains '\$\{SHOP_PORT\}', which is not set$"):
        open_feature_store(settings)

"""Settings: where each value comes from, what is refused and how it is said, and that secrets never show."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import SecretStr, ValidationError

from rec_ray.config import SECRETS, Section, Settings, redact_settings
from rec_ray.config.loading import load_settings
from rec_ray.config.reference import find_entry, list_entries, render_reference
from rec_ray.config.template import SHOWN, render_settings
from rec_ray.errors import ConfigError
from rec_ray.schema import FeatureDeclaration

SECRET = "hunter2 is: {secret"


def project(folder: Path, text: str = "") -> Path:
    file = folder / "rec_ray.yaml"
    file.write_text(text, encoding="utf-8")
    return file


def load(folder: Path, text: str = "", *overrides: str, **environ: str) -> Settings:
    return load_settings(project(folder, text), overrides, environ)


def refusal(folder: Path, text: str = "", *overrides: str, **environ: str) -> str:
    with pytest.raises(ConfigError) as refused:
        load(folder, text, *overrides, **environ)
    assert refused.value.exit_code == 2
    return str(refused.value)


def test_an_empty_file_gives_the_defaults(tmp_path: Path) -> None:
    settings = load(tmp_path)
    assert settings.candidates.k == 100
    assert settings.train == Settings().train
    assert settings.feast.user_service == "user_service"


def test_the_command_line_overrides_the_environment_which_overrides_the_file(tmp_path: Path) -> None:
    text = "candidates: {k: 1, exclude_seen: false}\ntrain: {epochs: 1, seed: 1}\n"
    environ = {"REC_RAY__TRAIN__EPOCHS": "2", "REC_RAY__CANDIDATES__K": "2", "OTHER": "9"}
    settings = load(tmp_path, text, "candidates.k=3", **environ)
    assert (settings.train.seed, settings.train.epochs, settings.candidates.k) == (1, 2, 3)
    assert not settings.candidates.exclude_seen


def test_the_number_of_training_workers_may_have_bounds(tmp_path: Path) -> None:
    fixed, grows = load(tmp_path, "", "train.num_workers=3").train, load(tmp_path, "train: {num_workers: [1, 4]}").train
    assert (fixed.least_workers, fixed.most_workers) == (3, 3)
    assert (grows.least_workers, grows.most_workers) == (1, 4)
    assert load(tmp_path, REC_RAY__TRAIN__NUM_WORKERS="[2, 4]").train.num_workers == (2, 4)
    assert "the least is above the most" in refusal(tmp_path, "train: {num_workers: [4, 1]}")
    for wrong in ("0", "[1, 2, 3]", "two"):
        said = refusal(tmp_path, f"train: {{num_workers: {wrong}}}")
        assert "1 wrong setting(s)" in said and "train.num_workers: expected a number from 1 on" in said


def test_values_of_overrides_are_yaml(tmp_path: Path) -> None:
    settings = load(
        tmp_path,
        "",
        "evaluation.ks=[1, 7]",
        "features.interaction.type_field=null",
        "features.interaction.weights={purchase: 5, cart: 2}",
        "features.item.price={kind: numeric}",
        "train.learning_rate=1e-4",
        "storage.url=s3://bucket/a=b",
    )
    assert settings.evaluation.ks == [1, 7]
    assert settings.features.interaction.type_field is None
    assert settings.features.interaction.weights == {"purchase": 5.0, "cart": 2.0}
    assert settings.features.item == {"price": FeatureDeclaration("numeric")}
    assert settings.train.learning_rate == 1e-4
    assert settings.storage.url == "s3://bucket/a=b"


def test_sections_and_lists_that_hold_nothing_have_their_defaults(tmp_path: Path) -> None:
    text = (
        "train:\nfeatures:\n  user:\n  interaction:\n    weights:\n    type_field: null\nevaluation:\n  # gate: off\n"
    )
    settings = load(tmp_path, text, REC_RAY__FEATURES__USER__AGE__KIND="numeric")
    assert settings.train == Settings().train
    assert settings.features.user == {"age": FeatureDeclaration("numeric")}
    assert settings.features.interaction.weights == {}
    assert settings.features.interaction.type_field is None


def test_an_unquoted_off_is_no_boolean(tmp_path: Path) -> None:
    assert load(tmp_path, "evaluation: {gate: off}").evaluation.gate == "off"
    assert load(tmp_path, "", "evaluation.gate=off").evaluation.gate == "off"
    assert "'warn', 'refuse' or 'off'; got True" in refusal(tmp_path, "evaluation: {gate: on}")


def test_names_of_features_in_variables_mean_those_of_the_file(tmp_path: Path) -> None:
    text = "features:\n  user: {Age: {kind: numeric}}\n  interaction: {weights: {AddToCart: 2}}\n"
    settings = load(
        tmp_path,
        text,
        REC_RAY__FEATURES__USER__AGE__KIND="categorical",
        REC_RAY__FEATURES__USER__CITY__KIND="text",
        REC_RAY__FEATURES__INTERACTION__WEIGHTS__ADDTOCART="3",
        REC_RAY__FEATURES__INTERACTION__WEIGHTS__BUY="4",
    )
    assert settings.features.user == {"Age": FeatureDeclaration("categorical"), "city": FeatureDeclaration("text")}
    assert settings.features.interaction.weights == {"AddToCart": 3.0, "buy": 4.0}


# --- files that are none


def test_a_missing_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no settings file at .*none\.yaml; make a project with `rec-ray init DIR`"):
        load_settings(tmp_path / "none.yaml", environ={})
    with pytest.raises(ConfigError, match="no settings file"):
        load_settings(tmp_path, environ={})


def test_what_is_no_yaml_is_refused_with_the_line_number_only(tmp_path: Path) -> None:
    message = refusal(tmp_path, f"train:\n  epochs: 3\ndatabase:\n  password: {SECRET}\n")
    assert "is not YAML" in message and "line 4" in message and "hunter2" not in message
    project(tmp_path).write_bytes(b"train: \xff")
    with pytest.raises(ConfigError, match="cannot be read as YAML"):
        load_settings(tmp_path / "rec_ray.yaml", environ={})
    assert "contains a list; expected the sections 'feast', 'side_tables', 'storage'" in refusal(tmp_path, "- train")


# --- settings that are wrong


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("trian: {epochs: 1}", "trian: no such setting; did you mean train?"),
        ("train: {epoch: 1}", "train.epoch: no such setting; did you mean train.epochs?"),
        ("train: {xyzzy: 1}", "train.xyzzy: no such setting; known are 'epochs', 'patience'"),
        (
            "features: {interaction: {typefield: a}}",
            "features.interaction.typefield: no such setting; did you mean features.interaction.type",
        ),
        (
            "features: {user: {a: {kind: text, seperator: x}}}",
            "no such setting; did you mean features.user.a.separator?",
        ),
        ("features: {user: {a: {kind: number}}}", "features.user.a.kind: expected 'numeric'"),
        ("features: {user: {a: {}}}", "features.user.a.kind: expected a value, which is missing"),
        ("features: {user: {a: {kind: vector}}}", "features.user.a: a vector needs its length"),
        ("features: {user: {a: {kind: categories, separator: ''}}}", "features.user.a: the separator is empty"),
        ("features: {interaction: {weights: {buy: 0}}}", "weights.buy: expected a number above 0; got 0"),
        ("train: {epochs: 0}", "train.epochs: expected a number from 1 on, or auto; got 0"),
        ("train: {epochs: many}", "train.epochs: expected a number from 1 on, or auto"),
        ("train: {learning_rate: .inf}", "train.learning_rate: expected a finite number"),
        ("train: {seed: -1}", "train.seed: expected at least 0; got -1 (in "),
        ("train: 3", "train: expected a section with settings"),
        ("model: {dropout: 1.0}", "model.dropout: expected a number below 1"),
        ("model: {embedding_size: 9}", "model.embedding_size 9 is not a multiple of model.heads 2"),
        ("evaluation: {ks: []}", "evaluation.ks: expected at least 1 entry"),
        ("evaluation: {test_fraction: 0.6, validation_fraction: 0.5}", "leave no events to train on"),
        ("train: {uniform_negatives: 0, in_batch_negatives: false}", "leaves no negatives"),
        (
            "candidates: {filters: {availble: a}}",
            "filters.availble: no such setting; did you mean candidates.filters.ava",
        ),
        ("candidates: {filters: {most_per_category: 2}}", "needs candidates.filters.category, the item field"),
        ("candidates: {filters: {category: c, category_level: 1}}", "has no effect without most_per_category"),
        ("candidates: {exclude_seen: false, filters: {seen_days: 3}}", "have no effect while exclude_seen is false"),
        (
            "candidates: {filters: {rules: [{item: a, user: b, must_be: below}]}}",
            "candidates.filters.rules.0.must_be: expected 'equal', 'at_least'",
        ),
        (
            "candidates: {filters: {rules: [{item: a, user: b, must_be: equal, missing: x}]}}",
            "candidates.filters.rules.0.missing: no such setting; known are 'item', 'must_be', 'user'",
        ),
        ("candidates: {diversity: 1}", "candidates.diversity: expected a number below 1"),
        ("search: {text_encoder: bge}", "search.text_encoder: expected a text of the form"),
        ("search: {text_veiws: {}}", "search.text_veiws: no such setting; did you mean search.text_views?"),
        (
            "search: {image_views: {a: {v: {image: x, texts: [y]}}}}",
            "search.image_views.a.v.texts: no such setting; did you mean search.image_views.a.v.text?",
        ),
        ("search: {text_views: {a: {}}}", "text_views.a lists no field of its view"),
        ("search: {text_views: {a: {v: []}}}", "search.text_views.a.v: expected at least 1 entry"),
        ("search: {text_views: {a: {v: [x]}}, image_views: {a: {v: {image: x}}}}", "a is in text_views and in image_"),
        ("search: {image_encoder: 'transformers:clip', image_views: {}}", "has no effect without image_views"),
    ],
)
def test_a_wrong_setting_is_named_with_what_was_expected(tmp_path: Path, text: str, said: str) -> None:
    assert said in refusal(tmp_path, text)


def test_a_multiple_of_heads_is_only_asked_of_a_transformer(tmp_path: Path) -> None:
    assert load(tmp_path, "model: {embedding_size: 9, history: mean}").model.embedding_size == 9


def test_only_views_with_an_encoder_are_searched_and_their_fields_read(tmp_path: Path) -> None:
    search = load(tmp_path, "").search
    assert (search.vectors, search.item_fields) == ({}, {})
    assert set(search.without_encoder.values()) == {"search.text_encoder", "search.image_encoder"}
    search = load(
        tmp_path, "search: {text_encoder: 'transformers:./bge', image_encoder: 'transformers:some/clip'}"
    ).search
    assert search.text_model == str((tmp_path / "bge").resolve())
    assert search.image_model == "some/clip"
    assert search.vectors == {
        "item_textual_features_embed": ["about_product_embedding"],
        "item_clip_features_embed": ["clip_latent_space_embedding"],
    }
    assert set(search.item_fields) == {"about_product", "img_link"}


def test_all_faults_are_told_at_once(tmp_path: Path) -> None:
    message = refusal(tmp_path, "train: {epoch: 1}\ncandidates: {k: -1}\n", "model.norm=sideways")
    assert "3 wrong setting(s)" in message
    assert [line.split(":")[0].strip() for line in message.splitlines()[1:]] == [
        "model.norm",
        "train.epoch",
        "candidates.k",
    ]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.epochs", "--set takes section.key=value; got 'train.epochs'"),
        ("epochs=3", "--set takes section.key=value; got 'epochs=...'; did you mean train.epochs?"),
        ("train.epochs.more=3", "--set: train.epochs.more is below 'epochs', which is not a section"),
        ("train.epochs=[", "the value of --set train.epochs is not YAML"),
        ("train.epoch=3", "did you mean train.epochs? (from --set)"),
    ],
)
def test_a_wrong_override_is_named(tmp_path: Path, override: str, said: str) -> None:
    assert said in refusal(tmp_path, "train: {epochs: 2}", override)


def test_a_misspelt_variable_is_refused(tmp_path: Path) -> None:
    assert "train.epoch: no such setting; did you mean train.epochs?" in refusal(tmp_path, REC_RAY__TRAIN__EPOCH="3")
    assert "(from the variable REC_RAY__TRAIN__EPOCH)" in refusal(tmp_path, REC_RAY__TRAIN__EPOCH="3")
    assert "environment: train.epochs.x is below 'epochs'" in refusal(
        tmp_path, "train: {epochs: 1}", REC_RAY__TRAIN__EPOCHS__X="3"
    )


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Settings().train.epochs = 3


# --- secrets


def secret_of(settings: Settings, section: str, key: str) -> str:
    value = getattr(getattr(settings, section), key)
    assert isinstance(value, SecretStr)
    return value.get_secret_value()


@pytest.mark.parametrize(("section", "key"), sorted(SECRETS))
def test_a_secret_comes_from_the_environment_or_a_file_and_never_shows(tmp_path: Path, section: str, key: str) -> None:
    name = f"REC_RAY__{section}__{key}".upper()
    mounted = tmp_path / "mounted"
    mounted.write_text(f"{SECRET}\n", encoding="utf-8")
    for environ in ({name: SECRET}, {f"{name}_FILE": str(mounted)}):
        settings = load(tmp_path, **environ)
        assert secret_of(settings, section, key) == SECRET
        for shown in (str(settings), repr(settings), str(redact_settings(settings)), settings.model_dump_json()):
            assert "hunter2" not in shown and "**********" in shown
        # The faults of other settings do not show it either.
        assert "hunter2" not in refusal(tmp_path, "train: {epochs: 0}", **environ)


def test_a_secret_is_text_and_an_empty_one_is_none(tmp_path: Path) -> None:
    assert secret_of(load(tmp_path, REC_RAY__DATABASE__PASSWORD="12345"), "database", "password") == "12345"
    assert load(tmp_path, REC_RAY__DATABASE__PASSWORD="").database.password is None


@pytest.mark.parametrize(("section", "key"), sorted(SECRETS))
def test_a_secret_in_a_file_or_an_override_is_refused_without_showing_it(
    tmp_path: Path, section: str, key: str
) -> None:
    name = f"REC_RAY__{section}__{key}".upper()
    message = refusal(tmp_path, f"{section}: {{{key}: hunter2}}")
    assert f"contains the secret {section}.{key}; set {name} or {name}_FILE instead" in message
    assert f"{section}.{key} is a secret" in refusal(tmp_path, "", f"{section}.{key}=hunter2")
    for other in (
        refusal(tmp_path, f"{section}: [{{{key}: hunter2}}]"),
        refusal(tmp_path, f"{section}: '{key} hunter2'"),
        refusal(tmp_path, f"{section}: {{{key}s: hunter2}}"),
        refusal(tmp_path, "", f"{key}=hunter2"),
        refusal(tmp_path, "", f"{section}.{key}.x=hunter2"),
        refusal(tmp_path, **{f"REC_RAY__{section}".upper(): f"{{{key}: [hunter2"}),
        refusal(tmp_path, **{f"{name}_FILE": "/nowhere/hunter2"}),
        message,
    ):
        assert "hunter2" not in other


def test_a_secret_file_that_cannot_be_read_is_named_by_its_variable(tmp_path: Path) -> None:
    name = "REC_RAY__STORAGE__SECRET_KEY_FILE"
    assert f"the file in {name} cannot be read: No such file" in refusal(tmp_path, **{name: "/nowhere/x"})
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    assert f"the file in {name} cannot be read: it is not text" in refusal(tmp_path, **{name: str(tmp_path / "binary")})


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:hunter2@host/db",
        "postgresql+psycopg://me:hunter2/#?@host:5432/db",
        "postgresql://:hunter2@host/db",
        "postgresql://me@host/db?password=hunter2",
        "postgresql://me@host/db?sslmode=require&sslpassword=hunter2",
    ],
)
def test_a_database_address_with_a_password_is_refused_without_showing_it(tmp_path: Path, url: str) -> None:
    for message in (
        refusal(tmp_path, f"database: {{url: '{url}'}}"),
        refusal(tmp_path, "train: {epochs: 0}", f"database.url='{url}'"),
        refusal(tmp_path, REC_RAY__DATABASE__URL=f"'{url}'"),
    ):
        assert "hunter2" not in message
        assert "database.url: contains a password; remove it and set REC_RAY__DATABASE__PASSWORD or" in message
    with pytest.raises(ValidationError) as refused:
        Settings.model_validate({"database": {"url": url}})
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize(
    "url", ["postgresql://me@host:5432/db", "postgresql://host:5432/db", "postgresql+psycopg://me@[::1]:5432/db?a=b"]
)
def test_a_database_address_without_a_password_is_taken_as_it_is(tmp_path: Path, url: str) -> None:
    assert load(tmp_path, f"database: {{url: '{url}'}}").database.url == url


@pytest.mark.parametrize(
    "url",
    [
        "sqlite:///:memory:",
        "sqlite://",
        "sqlite:///",
        "sqlite+pysqlite:///:memory:",
        "sqlite:///file:x?mode=memory&uri=true",
    ],
)
def test_a_database_in_memory_is_refused_with_the_reason(tmp_path: Path, url: str) -> None:
    message = refusal(tmp_path, f"database: {{url: '{url}'}}")
    assert "database.url: a database in memory is not supported, because" in message and "use a file" in message


# --- paths and addresses


def test_relative_paths_are_relative_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "project"
    folder.mkdir()
    text = "feast: {repo: ../repo}\nstorage: {url: my store, ca_bundle: ca.pem}\ndatabase: {url: 'sqlite:///a/v.db'}\n"
    project(folder, text)
    monkeypatch.chdir(tmp_path)
    settings = load_settings("project/rec_ray.yaml", environ={})
    assert settings.feast.repo == str(tmp_path / "repo")
    assert settings.storage.url == str(folder / "my store")
    assert settings.storage.ca_bundle == str(folder / "ca.pem")
    assert settings.database.url == f"sqlite:///{folder}/a/v.db"


def test_absolute_paths_and_addresses_stay(tmp_path: Path) -> None:
    text = (
        "feast: {repo: /r}\nstorage: {url: 's3://bucket/prefix', ca_bundle: /ca}\ndatabase: {url: 'sqlite:////v.db'}\n"
    )
    settings = load(tmp_path, text)
    assert (settings.feast.repo, settings.storage.url, settings.storage.ca_bundle) == (
        "/r",
        "s3://bucket/prefix",
        "/ca",
    )
    assert settings.database.url == "sqlite:////v.db"
    assert load(tmp_path, "database: {url: 'sqlite+pysqlite:///v.db'}").database.url == (
        f"sqlite+pysqlite:///{tmp_path}/v.db"
    )


def test_the_folder_of_a_linked_file_is_the_one_it_is_linked_into(tmp_path: Path) -> None:
    """As Kubernetes mounts a ConfigMap: the folder behind the link has another name after each update."""
    (tmp_path / "..2026_11_23").mkdir()
    project(tmp_path / "..2026_11_23")
    (tmp_path / "..data").symlink_to("..2026_11_23")
    (tmp_path / "rec_ray.yaml").symlink_to("..data/rec_ray.yaml")
    settings = load_settings(tmp_path / "rec_ray.yaml", environ={})
    assert settings.feast.repo == str(tmp_path / "feature_repo")


@pytest.mark.parametrize(
    ("text", "environment", "address"),
    [
        ("", "10.0.0.1:6379", "10.0.0.1:6379"),
        ("", "ray://head:10001", "ray://head:10001"),
        ("ray: {address: auto}", "10.0.0.1:6379", "auto"),
        ("", "http://head:8265", None),
        ("", "https://head:8265", None),
        ("", " ", None),
    ],
)
def test_the_cluster_is_that_of_ray_address_unless_it_is_the_job_server(
    tmp_path: Path, text: str, environment: str, address: str | None
) -> None:
    assert load(tmp_path, text, RAY_ADDRESS=environment).ray.address == address


# --- the file of a new project


def keys_of(section: type[Section], prefix: str = "") -> list[str]:
    keys = []
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            keys += keys_of(field.annotation, f"{prefix}{name}.")
        else:
            keys.append(f"{prefix}{name}")
    return keys


def test_the_template_holds_the_usual_settings_below_their_comments_but_no_secret() -> None:
    lines = render_settings().splitlines()
    stack: list[str] = []
    found = []
    for i, line in enumerate(lines):
        match = re.match(r"( *)(\w+):(.*)$", line)
        if not match:
            continue
        depth = len(match[1]) // 2
        stack = [*stack[:depth], match[2]]
        assert lines[i - 1].startswith(f"{match[1]}# "), f"{line!r} has no comment"
        assert len(lines[i - 1].strip()) > 10
        if match[3]:
            found.append(".".join(stack))
    usual = {f"{section}.{key}" for section, keys in SHOWN.items() for key in keys}
    assert set(found) == usual and usual < set(keys_of(Settings))
    assert [line.rstrip(":") for line in lines if re.match(r"\w+:$", line)] == list(SHOWN)
    assert max(map(len, lines)) < 110 and len(lines) < 120
    assert "  # Values: true or false." in "\n".join(lines).replace("interacted with. ", "interacted with.\n  # ")


def test_the_template_holds_given_settings_that_are_not_usual_ones() -> None:
    values = {"search": {"image_weight": 3.0}, "candidates": {"filters": {"category": "c"}}, "model": {"layers": 3}}
    text = render_settings(values, {"train.seed": "a note"})
    assert yaml.safe_load(text)["search"] == {"image_weight": 3.0}
    assert yaml.safe_load(text)["candidates"]["filters"] == {"category": "c"}
    assert yaml.safe_load(text)["model"]["layers"] == 3 and "  # a note\n  seed: 0\n" in text
    assert "side_tables" not in text


def test_the_reference_is_that_of_the_settings_classes() -> None:
    page = Path(__file__).parents[2] / "docs" / "configuration.md"
    assert page.read_text(encoding="utf-8") == render_reference(), "run: make configuration"
    assert [entry.name for entry in list_entries()] == keys_of(Settings)


@pytest.mark.parametrize(
    ("name", "allowed", "default"),
    [
        ("train.epochs", "a whole number above 0, or auto", "auto"),
        ("model.layers", "a whole number from 1 and up to 64", "2"),
        ("evaluation.gate", "warn, refuse or off", "warn"),
        ("candidates.exclude_seen", "true or false", "true"),
        ("evaluation.ks", "a list of whole number above 0", "[5, 10, 20, 50, 100]"),
        ("candidates.filters.seen_days", "a number above 0, or null", "null"),
        (
            "features.user",
            "a mapping, each name to {kind: "
            "numeric, categorical, categories, category_path, text, timestamp or vector}",
            "{}",
        ),
        ("storage.secret_key", "a text from the environment or a file, or null", "none"),
    ],
)
def test_a_setting_is_explained(name: str, allowed: str, default: str) -> None:
    entry = find_entry(name)
    assert (entry.allowed, entry.default) == (allowed, default)
    assert entry.variable.startswith("REC_RAY__" + name.upper().replace(".", "__"))


def test_a_misspelt_setting_is_not_explained_but_suggested() -> None:
    for name, near in {"epochs": "train.epochs", "train.epoch": "train.epochs", "layers": "model.layers"}.items():
        with pytest.raises(ConfigError, match=f"did you mean .*{near}"):
            find_entry(name)


def test_the_template_loads_back_to_the_same_settings(tmp_path: Path) -> None:
    values: dict[str, Any] = {
        "features": {
            "user": {
                "größe: cm # 1": {"kind": "numeric"},
                "null": {"kind": "categories", "separator": "|"},
                "taste": {"kind": "vector", "length": 3},
            },
            "item": {"on": {"kind": "category_path", "separator": ", "}},
            "interaction": {
                "type_field": None,
                "weights": {"1": 2.5, "naïve 视频": 3.0},
                "negative_types": ["no", "x: y"],
            },
            "item_name": "- name...",
        },
        "evaluation": {"gate": "off", "ks": [1]},
        "model": {"history": "none"},
        "storage": {"url": "s3://bucket/it's"},
        "database": {"url": "postgresql://me@host/db"},
        "feast": {"repo": str(tmp_path)},
        "ray": {"num_cpus": 2},
    }
    settings = load(tmp_path, render_settings(values))
    assert settings == Settings.model_validate(values)
    assert settings.features.user["taste"] == FeatureDeclaration("vector", length=3)
    assert yaml.safe_load(render_settings(values))["features"]["user"]["taste"] == {"kind": "vector", "length": 3}


def test_notes_stand_between_the_description_and_the_setting() -> None:
    lines = render_settings(notes={"features.user": "first\nsecond", "train.seed": "third"}).splitlines()
    at = lines.index("  user: {}")
    assert lines[at - 2 : at] == ["  # first", "  # second"]
    assert lines[at - 4].startswith("  # Features of users, by field name. Values: ")
    at = lines.index("  seed: 0")
    assert lines[at - 1] == "  # third" and lines[at - 2].startswith("  # Random seed; makes a run on one worker")

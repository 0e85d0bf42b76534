"""Checks of a night around the steps: data before training, lists before the first push, features online after it.

Each takes the context and the objects of steps, records its checks beside the version and logs those that do not pass.
`steps` and the ranking of the model are checked elsewhere (`evaluation.gate`).
"""

from __future__ import annotations

from collections.abc import Sequence

from rec_ray.config import redact_settings
from rec_ray.contracts import Candidates, TrainingData
from rec_ray.errors import DataError, GateError, RecRayError, list_names
from rec_ray.logs import LOGGER
from rec_ray.publishing.audit import audit_features, check_skew
from rec_ray.retrieval.profiles.checks import PASSED, REFUSED, Check, decide, worst_of
from rec_ray.retrieval.profiles.compare import compare_profiles, record_history
from rec_ray.retrieval.profiles.data_profile import DataProfile
from rec_ray.retrieval.profiles.list_profile import LISTS, ListProfile, compare_lists, measure_churn
from rec_ray.runs.check_records import as_values, read_profile, record_checks, write_profile
from rec_ray.runs.context import RunContext
from rec_ray.step_events import step
from rec_ray.storage.model_store import candidates_folder, read_metadata
from rec_ray.storage.object_store import Storage


def check_data(context: RunContext, data: TrainingData, version: str, *, publishes: bool = True) -> None:
    """Compare the data with those of the live version, and store their profile for the next night.

    publishes: False only warns, because a run that does not publish replaces nothing.

    Raises:
        GateError: the data differ too much; nothing was trained.
    """
    storage, settings = context.storage, context.settings.checks
    if not data.profile:
        return
    with step("check_data", context.seconds, version=version) as running:
        profile = DataProfile.from_json(storage.read_bytes(data.profile), storage.uri(data.profile))
        live = None if settings.data == "off" else _live_profile(context, version)
        checks: list[Check] = []
        if live is not None:
            mode = settings.data if publishes and _same_settings(context, ("features", "feast")) else "warn"
            checks = decide(compare_profiles(profile, live, loss=settings.loss, shift=settings.shift), mode)
            record_history(profile, live)
        write_profile(storage, version, profile)
        record_checks(storage, version, ["data"], checks)
        running.add(**_count(checks))
    remedy = "to train on it anyway, resume with --set checks.data=warn"
    refuse(context, version, checks, f"the data are refused before training (checks.data: refuse); {remedy}")


def check_lists(context: RunContext, candidates: Candidates, version: str) -> list[Check]:
    """Compare the lists with those of the live version; return the checks, so that the report is written first."""
    storage, settings = context.storage, context.settings.checks
    with step("check_lists", context.seconds, version=version) as running:
        key = f"{candidates.folder}/{LISTS}"
        new, live = _read_lists(storage, key), None
        before = context.database.live()
        if settings.lists != "off" and before not in (None, version):
            live = _read_lists(storage, f"{candidates_folder(str(before))}/{LISTS}")
        checks = []
        if new is not None and live is not None:
            mode = settings.lists if _same_settings(context, ("features", "candidates")) else "warn"
            checks = decide(compare_lists(new, live, loss=settings.loss), mode)
            new.churn = measure_churn(new, live)
            storage.write_bytes(key, new.to_json())
        record_checks(storage, version, ["lists"], checks)
        running.add(**_count(checks))
    return checks


def require_lists(context: RunContext, version: str, checks: Sequence[Check]) -> None:
    """Raise the refusal of the lists, if there is one.

    Raises:
        GateError: the lists differ too much from the live version's; nothing was pushed.
    """
    remedy = f"to publish them anyway: rec-ray publish {version}"
    refuse(context, version, checks, f"nothing was pushed (checks.lists: refuse); {remedy}")


def check_online(context: RunContext, version: str) -> None:
    """Compare the features of a sample in the online store with those of the run; differences only warn.

    The version is live already, so a failure is logged and ends no run.
    """
    if not context.settings.checks.online:
        return
    with step("check_online", context.seconds, version=version) as running:
        try:
            skews = audit_features(context.store, context.storage, context.settings, version, context.as_of)
            checks = check_skew(skews)
            record_checks(context.storage, version, ["skew"], checks)
            refuse(context, version, checks, "")
            running.add(**_count(checks))
        except RecRayError as error:
            LOGGER.warning("features in the online store are not compared: %s", error)


def worse(verdict: str, checks: Sequence[Check]) -> str:
    """Return the verdict of the gate, or that of more checks if they are worse."""
    found = worst_of(checks)
    return verdict if found == PASSED or verdict == "refused" else found


def refuse(context: RunContext, version: str, checks: Sequence[Check], what: str) -> None:
    """Log the checks that do not pass; mark the version and raise if one of them refuses.

    Raises:
        GateError: at least one check refuses.
    """
    for each in checks:
        if each.verdict != PASSED:
            fields = {"check": as_values([each])[0]}
            LOGGER.warning("%s %s: %s", each.name, each.verdict, each.said, extra={"fields": fields})
    refused = [each for each in checks if each.verdict == REFUSED]
    if refused:
        more = f" and {len(refused) - 3} more" if len(refused) > 3 else ""
        said = "; ".join(each.said for each in refused[:3]) + more
        context.database.mark(version, "refused", reason=said)
        raise GateError(f"{said}: {what}")


def _count(checks: Sequence[Check]) -> dict[str, int]:
    verdicts = [each.verdict for each in checks]
    return {"checks": len(checks), "warned": verdicts.count("warned"), "refused": verdicts.count(REFUSED)}


def _same_settings(context: RunContext, sections: Sequence[str]) -> bool:
    """Return whether the live version was made with the same sections of the settings; other settings explain a change.

    Keys that only one of the two programs has are left out, and so is the place of the feature repository.
    """
    try:
        before = read_metadata(str(context.database.live()), context.storage).get("settings") or {}
    except DataError:
        return True
    now = redact_settings(context.settings)
    for section in sections:
        old, new = before.get(section) or {}, now[section]
        names = sorted(name for name in old.keys() & new.keys() - {"repo"} if old[name] != new[name])
        if names:
            LOGGER.info("%s of section %s changed, so checks of this night only warn", list_names(names), section)
            return False
    return True


def _live_profile(context: RunContext, version: str) -> DataProfile | None:
    live = context.database.live()
    if live in (None, version):
        return None
    try:
        found = read_profile(context.storage, str(live))
    except DataError as error:
        LOGGER.warning("the data are not compared with those of the live version %s: %s", live, error)
        return None
    if found is None:
        LOGGER.info("the data are not compared: the live version %s has no profile of its data", live)
    return found


def _read_lists(storage: Storage, key: str) -> ListProfile | None:
    if not storage.exists(key):
        return None
    try:
        return ListProfile.from_json(storage.read_bytes(key), storage.uri(key))
    except DataError as error:
        LOGGER.warning("the lists are not compared with those of the live version: %s", error)
        return None

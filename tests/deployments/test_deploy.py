"""What the server is told, on a real server: once, completely, and without undoing what a person has done there."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from deployments.deploy import deploy
from deployments.environment import client_environment, server_environment
from models.errors import ServiceUnavailableError, SettingsError
from models.hospital import Nightly, Services
from models.settings import Settings
from tests.components import free_port, until
from tests.deployments.conftest import Served

RECIPE = """
name = "{name}"
kind = "segmentation"
images.modality = "CT"
labels.source = "SEG"
"""


@pytest.fixture(scope="module")
def installation(served: Served) -> Settings:
    return nightly(served, "liver", cron="30 2 * * *")


def nightly(served: Served, *names: str, cron: str) -> Settings:
    """Settings that learn these recipes at 02:30 in Berlin."""
    for name in names:
        (served.settings.home / f"{name}.toml").write_text(RECIPE.format(name=name))
    rule = Nightly(recipes=tuple(Path(f"{n}.toml") for n in names), cron=cron, timezone="Europe/Berlin")
    return served.settings.model_copy(update={"nightly": rule})


def told(served: Served) -> list[Any]:
    """All that deploying may have changed, with the moment of each change."""
    deployments = served.post("/deployments/filter", {})
    automations = served.post("/automations/filter", {})
    return sorted(
        [(d["name"], d["id"], d["version"], [s["id"] for s in d["schedules"]]) for d in deployments]
        + [(a["name"], a["id"], a["updated"]) for a in automations],
        key=repr,
    )


def test_everything_is_there_and_telling_it_again_changes_nothing(served: Served, installation: Settings) -> None:
    names = deploy(installation)
    assert set(names) == {
        "study arrived/arrivals",
        "retrain/liver",
        "ingest/by-hand",
        "predict/by-hand",
        "evaluate/by-hand",
        "watch/regularly",
        "rollback/by-hand",
    }
    before = told(served)
    assert deploy(installation) == names
    assert told(served) == before


def test_the_night_is_scheduled_in_the_hospitals_zone_and_one_at_a_time(served: Served, installation: Settings) -> None:
    deploy(installation)
    found = served.get("/deployments/name/retrain/liver")
    assert found["global_concurrency_limit"]["limit"] == 1
    assert found["concurrency_options"]["collision_strategy"] == "ENQUEUE"
    assert found["work_pool_name"] == "nocturne"
    assert served.get("/deployments/name/study arrived/arrivals")["work_pool_name"] == "nocturne-arrivals"
    assert served.get("/v2/concurrency_limits/gpu")["limit"] == 1

    query = {"deployments": {"id": {"any_": [found["id"]]}}, "sort": "EXPECTED_START_TIME_ASC"}
    runs = until(lambda: served.post("/flow_runs/filter", query), "the first nights on the schedule")
    due = datetime.fromisoformat(runs[0]["expected_start_time"]).astimezone(ZoneInfo("Europe/Berlin"))
    assert (due.hour, due.minute) == (2, 30)
    assert runs[0]["parameters"]["recipe"]["name"] == "liver"


def test_the_form_shows_the_recipes_fields_and_refuses_what_is_wrong(served: Served, installation: Settings) -> None:
    deploy(installation)
    found = served.get("/deployments/name/retrain/liver")
    schema = found["parameter_openapi_schema"]
    assert {"recipe", "batch", "approval", "approval_hours"} == set(schema["properties"])
    assert {"name", "kind", "images", "labels", "train", "promote"} <= set(
        schema["definitions"]["Recipe"]["properties"]
    )

    wrong = found["parameters"] | {"recipe": found["parameters"]["recipe"] | {"kind": "divination"}}
    answer = served.answered("POST", f"/deployments/{found['id']}/create_flow_run", json={"parameters": wrong})
    assert answer.status_code == 409
    assert "divination" in answer.text


def test_what_a_person_has_paused_stays_paused_when_the_settings_change(served: Served, installation: Settings) -> None:
    deploy(installation)
    found = served.get("/deployments/name/retrain/liver")
    served.post(f"/deployments/{found['id']}/pause_deployment", {})
    deploy(nightly(served, "liver", cron="45 3 * * *"))
    changed = served.get("/deployments/name/retrain/liver")
    assert changed["schedules"][0]["schedule"]["cron"] == "45 3 * * *"
    assert changed["paused"]
    served.post(f"/deployments/{found['id']}/resume_deployment", {})


def test_a_recipe_that_is_no_longer_named_is_paused_and_one_given_by_hand_is_kept(
    served: Served, installation: Settings, tmp_path: Path
) -> None:
    by_hand = tmp_path / "spleen.toml"
    by_hand.write_text(RECIPE.format(name="spleen"))
    deploy(nightly(served, "liver", "kidney", cron="30 2 * * *"), recipes=[by_hand])
    deploy(installation)
    paused = {name: served.get(f"/deployments/name/retrain/{name}")["paused"] for name in ("liver", "kidney", "spleen")}
    assert paused == {"liver": False, "kidney": True, "spleen": False}


def test_a_training_that_may_wait_for_a_person_is_not_held_to_be_lost(served: Served, installation: Settings) -> None:
    (served.settings.home / "asked.toml").write_text(RECIPE.format(name="asked") + "promote.approval = true\n")
    both = Nightly(recipes=(Path("liver.toml"), Path("asked.toml")))
    deploy(installation.model_copy(update={"nightly": both}))
    watched = str(next(a for a in served.post("/automations/filter", {}) if a["name"] == "nocturne: a run was lost"))
    ids = {name: served.get(f"/deployments/name/retrain/{name}")["id"] for name in ("liver", "asked")}
    assert ids["liver"] in watched
    assert ids["asked"] not in watched
    assert served.get("/deployments/name/retrain/asked")["parameters"]["approval"] is True
    deploy(installation)


def test_the_form_for_a_rollback_wants_a_model_and_a_reason(served: Served, installation: Settings) -> None:
    deploy(installation)
    found = served.get("/deployments/name/rollback/by-hand")
    schema = found["parameter_openapi_schema"]
    assert set(schema["required"]) == {"model", "reason"}
    assert "recipe's name" in schema["properties"]["model"]["description"]
    path = f"/deployments/{found['id']}/create_flow_run"
    for wrong in ({"model": "liver"}, {"model": "liver", "reason": " "}, {"model": "", "reason": "bad masks"}):
        assert served.answered("POST", path, json={"parameters": wrong}).status_code == 409


@pytest.mark.parametrize("cron", ["when the moon is full", "30 25 * * *"])
def test_a_schedule_that_is_none_is_refused_in_words(served: Served, cron: str) -> None:
    with pytest.raises(SettingsError, match=r"nightly\.cron"):
        deploy(nightly(served, "liver", cron=cron))


def test_a_server_that_is_away_is_told(served: Served) -> None:
    away = served.settings.model_copy(update={"services": Services(prefect_port=free_port())})
    with pytest.raises(ServiceUnavailableError, match="nocturne up"):
        deploy(away)


def test_a_users_own_environment_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(home=tmp_path, prefect_auth="ana:secret", services=Services(prefect_port=4300))
    server, client = server_environment(settings), client_environment(settings)
    assert server["PREFECT_API_DATABASE_CONNECTION_URL"].endswith(f"{tmp_path}/prefect/prefect.db")
    assert server["PREFECT_SERVER_UI_API_URL"] == client["PREFECT_API_URL"] == "http://127.0.0.1:4300/api"
    assert server["PREFECT_SERVER_API_AUTH_STRING"] == client["PREFECT_API_AUTH_STRING"] == "ana:secret"

    monkeypatch.setenv("PREFECT_SERVER_DATABASE_CONNECTION_URL", "postgresql+asyncpg://db/prefect")
    monkeypatch.setenv("PREFECT_UI_URL", "https://nights.example.org")
    server = server_environment(settings)
    assert "PREFECT_API_DATABASE_CONNECTION_URL" not in server
    assert server["PREFECT_UI_URL"] == "https://nights.example.org"

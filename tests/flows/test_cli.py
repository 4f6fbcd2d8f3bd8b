"""The command as a person at a terminal meets it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

COMMANDS = [
    ["ingest"],
    ["labels", "import"],
    ["dataset", "build"],
    ["dataset", "show"],
    ["dataset", "split"],
    ["retrain"],
    ["evaluate"],
    ["models", "list"],
    ["models", "show"],
    ["models", "promote"],
    ["models", "rollback"],
    ["models", "export"],
    ["predict"],
    ["status"],
    ["pull"],
    ["resend"],
    ["doctor"],
    ["demo"],
]
HEAVY = {
    "torch",
    "monai",
    "prefect",
    "mlflow",
    "pandas",
    "pandera",
    "dask",
    "zarr",
    "sqlalchemy",
    "pydicom",
    "matplotlib",
}


def nocturne(*arguments: str, home: Path) -> subprocess.CompletedProcess[str]:
    """Run the command with a home of its own."""
    return subprocess.run(
        [sys.executable, "-m", "flows", *arguments],
        env={**os.environ, "NOCTURNE_HOME": str(home), "COLUMNS": "200", "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_explains_itself(command: list[str], tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from flows.cli import app

    told = CliRunner().invoke(app, [*command, "--help"], env={"COLUMNS": "200"})
    assert told.exit_code == 0
    assert "Usage" in told.output


def test_help_imports_nothing_heavy() -> None:
    code = "import sys, flows.cli; print(sorted(set(sys.modules) & set(sys.argv[1].split())))"
    told = subprocess.run(
        [sys.executable, "-c", code, " ".join(HEAVY)], capture_output=True, text=True, timeout=300, check=True
    )
    assert told.stdout.strip() == "[]"


def test_a_status_imports_nothing_that_it_does_not_show(tmp_path: Path) -> None:
    unwanted = HEAVY - {"sqlalchemy"} | {"numpy", "scipy", "alembic", "pynetdicom", "highdicom", "cryptography"}
    code = f"""
import sys
from flows.cli import main
sys.argv = ["nocturne", "status"]
try:
    main()
finally:
    print(sorted(set(sys.modules) & {unwanted!r}), file=sys.stderr)
"""
    assert nocturne("status", home=tmp_path).returncode == 0  # the first one makes the catalog
    told = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "NOCTURNE_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert "in quarantine" in told.stdout
    assert told.stderr.strip() == "[]"


def test_an_empty_installation_has_a_status_and_passes_its_examination(tmp_path: Path) -> None:
    status = nocturne("status", home=tmp_path)
    assert status.returncode == 0, status.stderr
    assert "in quarantine" in status.stdout
    doctor = nocturne("doctor", home=tmp_path)
    assert doctor.returncode == 0, doctor.stdout + doctor.stderr
    assert "FAIL" not in doctor.stdout
    assert (tmp_path / "secret").stat().st_mode & 0o777 == 0o600


def test_a_wrong_recipe_ends_in_one_readable_block(tmp_path: Path) -> None:
    recipe = tmp_path / "liver.toml"
    recipe.write_text('name = "liver"\nkind = "segmentation"\nimages.modality = "CT"\nlabels.sorce = "SEG"\n')
    told = nocturne("retrain", str(recipe), home=tmp_path)
    assert told.returncode == 1
    assert "did you mean 'source'" in told.stderr
    assert "Traceback" not in told.stderr


def test_a_model_that_is_not_there_is_told_with_what_to_do(tmp_path: Path) -> None:
    told = nocturne("models", "show", "liver", home=tmp_path)
    assert told.returncode == 1
    assert "not-found" in told.stderr
    assert "Traceback" not in told.stderr


def test_a_resend_says_what_it_did_or_which_destinations_there_are(tmp_path: Path) -> None:
    (tmp_path / "nocturne.toml").write_text('[[destinations]]\nkind = "folder"\nname = "pacs"\npath = "out"\n')
    idle = nocturne("resend", home=tmp_path)
    assert (idle.returncode, idle.stdout.strip()) == (0, "none was refused")
    unknown = nocturne("resend", "the-pacs", home=tmp_path)
    assert unknown.returncode == 1
    assert "known: pacs" in unknown.stderr
    assert "[[destinations]]" in unknown.stderr


def test_the_doctor_names_a_secret_that_others_can_read(tmp_path: Path) -> None:
    nocturne("status", home=tmp_path)
    (tmp_path / "secret").chmod(0o644)
    told = nocturne("doctor", home=tmp_path)
    assert told.returncode == 1
    assert "chmod 600" in told.stdout

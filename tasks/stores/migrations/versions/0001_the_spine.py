"""The spine: studies to predictions, and the vault."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:

    op.create_table(
        "datasets",
        sa.Column("dataset", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("classes", sa.JSON(), nullable=False),
        sa.Column("counts", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("dataset", name=op.f("pk_datasets")),
    )
    with op.batch_alter_table("datasets", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_datasets_name"), ["name"], unique=False)

    op.create_table(
        "decisions",
        sa.Column("number", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("action", sa.String(), nullable=False),
        sa.Column("package", sa.String(), nullable=False),
        sa.Column("version", sa.String(), nullable=False),
        sa.Column("before", sa.String(), nullable=True),
        sa.Column("evaluation", sa.String(), nullable=True),
        sa.Column("reasons", sa.JSON(), nullable=False),
        sa.Column("figures", sa.JSON(), nullable=False),
        sa.Column("who", sa.String(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_decisions")),
    )
    with op.batch_alter_table("decisions", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_decisions_name"), ["name"], unique=False)
        batch_op.create_index(batch_op.f("ix_decisions_package"), ["package"], unique=False)

    op.create_table(
        "quarantine",
        sa.Column("entry", sa.String(), nullable=False),
        sa.Column("stage", sa.String(), nullable=False),
        sa.Column("subject", sa.String(), nullable=False),
        sa.Column("patient", sa.String(), nullable=True),
        sa.Column("study", sa.String(), nullable=True),
        sa.Column("modality", sa.String(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("what", sa.String(), nullable=False),
        sa.Column("hint", sa.String(), nullable=False),
        sa.Column("instances", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("resolved_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("entry", name=op.f("pk_quarantine")),
    )
    with op.batch_alter_table("quarantine", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_quarantine_reason"), ["reason"], unique=False)
        batch_op.create_index(batch_op.f("ix_quarantine_subject"), ["subject"], unique=False)

    op.create_table(
        "splits",
        sa.Column("patient", sa.String(), nullable=False),
        sa.Column("split", sa.String(), nullable=False),
        sa.Column("stratum", sa.String(), nullable=False),
        sa.Column("origin", sa.String(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("patient", name=op.f("pk_splits")),
    )
    op.create_table(
        "studies",
        sa.Column("study", sa.String(), nullable=False),
        sa.Column("patient", sa.String(), nullable=False),
        sa.Column("study_date", sa.String(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("study", name=op.f("pk_studies")),
    )
    with op.batch_alter_table("studies", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_studies_patient"), ["patient"], unique=False)

    op.create_table(
        "vault",
        sa.Column("number", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("key_id", sa.String(), nullable=False),
        sa.Column("nonce", sa.LargeBinary(), nullable=False),
        sa.Column("sealed", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_vault")),
        sa.UniqueConstraint("kind", "key", name=op.f("uq_vault_kind_key")),
    )
    with op.batch_alter_table("vault", schema=None) as batch_op:
        batch_op.create_index("ix_vault_kind_created_at", ["kind", "created_at"], unique=False)

    op.create_table(
        "packages",
        sa.Column("package", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("dataset", sa.String(), nullable=False),
        sa.Column("weights_sha256", sa.String(), nullable=False),
        sa.Column("version", sa.String(), nullable=True),
        sa.Column("run", sa.String(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["dataset"], ["datasets.dataset"], name=op.f("fk_packages_dataset")),
        sa.PrimaryKeyConstraint("package", name=op.f("pk_packages")),
    )
    with op.batch_alter_table("packages", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_packages_dataset"), ["dataset"], unique=False)
        batch_op.create_index(batch_op.f("ix_packages_name"), ["name"], unique=False)

    op.create_table(
        "plans",
        sa.Column("plan", sa.String(), nullable=False),
        sa.Column("dataset", sa.String(), nullable=False),
        sa.Column("document", sa.JSON(), nullable=False),
        sa.Column("fingerprint", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["dataset"], ["datasets.dataset"], name=op.f("fk_plans_dataset")),
        sa.PrimaryKeyConstraint("plan", name=op.f("pk_plans")),
    )
    with op.batch_alter_table("plans", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_plans_dataset"), ["dataset"], unique=False)

    op.create_table(
        "series",
        sa.Column("series", sa.String(), nullable=False),
        sa.Column("series_uid", sa.String(), nullable=False),
        sa.Column("study", sa.String(), nullable=False),
        sa.Column("patient", sa.String(), nullable=False),
        sa.Column("modality", sa.String(), nullable=False),
        sa.Column("description", sa.String(), nullable=False),
        sa.Column("instances", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["study"], ["studies.study"], name=op.f("fk_series_study")),
        sa.PrimaryKeyConstraint("series", name=op.f("pk_series")),
    )
    with op.batch_alter_table("series", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_series_patient"), ["patient"], unique=False)
        batch_op.create_index(batch_op.f("ix_series_series_uid"), ["series_uid"], unique=False)
        batch_op.create_index(batch_op.f("ix_series_study"), ["study"], unique=False)

    op.create_table(
        "evaluations",
        sa.Column("evaluation", sa.String(), nullable=False),
        sa.Column("package", sa.String(), nullable=False),
        sa.Column("dataset", sa.String(), nullable=False),
        sa.Column("metric", sa.String(), nullable=False),
        sa.Column("value", sa.Float(), nullable=False),
        sa.Column("low", sa.Float(), nullable=True),
        sa.Column("high", sa.Float(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["dataset"], ["datasets.dataset"], name=op.f("fk_evaluations_dataset")),
        sa.ForeignKeyConstraint(["package"], ["packages.package"], name=op.f("fk_evaluations_package")),
        sa.PrimaryKeyConstraint("evaluation", name=op.f("pk_evaluations")),
    )
    with op.batch_alter_table("evaluations", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_evaluations_dataset"), ["dataset"], unique=False)
        batch_op.create_index(batch_op.f("ix_evaluations_package"), ["package"], unique=False)

    op.create_table(
        "volumes",
        sa.Column("volume", sa.String(), nullable=False),
        sa.Column("series", sa.String(), nullable=False),
        sa.Column("series_uid", sa.String(), nullable=False),
        sa.Column("study", sa.String(), nullable=False),
        sa.Column("patient", sa.String(), nullable=False),
        sa.Column("modality", sa.String(), nullable=False),
        sa.Column("unit", sa.String(), nullable=False),
        sa.Column("frame_of_reference", sa.String(), nullable=True),
        sa.Column("shape_z", sa.Integer(), nullable=False),
        sa.Column("shape_y", sa.Integer(), nullable=False),
        sa.Column("shape_x", sa.Integer(), nullable=False),
        sa.Column("spacing_z", sa.Float(), nullable=False),
        sa.Column("spacing_y", sa.Float(), nullable=False),
        sa.Column("spacing_x", sa.Float(), nullable=False),
        sa.Column("geometry", sa.JSON(), nullable=False),
        sa.Column("channels", sa.Integer(), nullable=False),
        sa.Column("description", sa.String(), nullable=False),
        sa.Column("manufacturer", sa.String(), nullable=False),
        sa.Column("model_name", sa.String(), nullable=False),
        sa.Column("slice_thickness", sa.Float(), nullable=True),
        sa.Column("notes", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["series"], ["series.series"], name=op.f("fk_volumes_series")),
        sa.ForeignKeyConstraint(["study"], ["studies.study"], name=op.f("fk_volumes_study")),
        sa.PrimaryKeyConstraint("volume", name=op.f("pk_volumes")),
    )
    with op.batch_alter_table("volumes", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_volumes_frame_of_reference"), ["frame_of_reference"], unique=False)
        batch_op.create_index(batch_op.f("ix_volumes_modality"), ["modality"], unique=False)
        batch_op.create_index(batch_op.f("ix_volumes_patient"), ["patient"], unique=False)
        batch_op.create_index(batch_op.f("ix_volumes_series"), ["series"], unique=False)
        batch_op.create_index(batch_op.f("ix_volumes_series_uid"), ["series_uid"], unique=False)
        batch_op.create_index(batch_op.f("ix_volumes_study"), ["study"], unique=False)

    op.create_table(
        "labels",
        sa.Column("label", sa.String(), nullable=False),
        sa.Column("patient", sa.String(), nullable=False),
        sa.Column("study", sa.String(), nullable=True),
        sa.Column("series_uid", sa.String(), nullable=True),
        sa.Column("volume", sa.String(), nullable=True),
        sa.Column("source", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("value", sa.String(), nullable=True),
        sa.Column("segments", sa.JSON(), nullable=False),
        sa.Column("source_digest", sa.String(), nullable=False),
        sa.Column("notes", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["volume"], ["volumes.volume"], name=op.f("fk_labels_volume")),
        sa.PrimaryKeyConstraint("label", name=op.f("pk_labels")),
    )
    with op.batch_alter_table("labels", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_labels_name"), ["name"], unique=False)
        batch_op.create_index(batch_op.f("ix_labels_patient"), ["patient"], unique=False)
        batch_op.create_index(batch_op.f("ix_labels_source_digest"), ["source_digest"], unique=False)
        batch_op.create_index(batch_op.f("ix_labels_study"), ["study"], unique=False)
        batch_op.create_index(batch_op.f("ix_labels_volume"), ["volume"], unique=False)

    op.create_table(
        "predictions",
        sa.Column("prediction", sa.String(), nullable=False),
        sa.Column("package", sa.String(), nullable=False),
        sa.Column("volume", sa.String(), nullable=False),
        sa.Column("result", sa.JSON(), nullable=False),
        sa.Column("seconds", sa.Float(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["package"], ["packages.package"], name=op.f("fk_predictions_package")),
        sa.ForeignKeyConstraint(["volume"], ["volumes.volume"], name=op.f("fk_predictions_volume")),
        sa.PrimaryKeyConstraint("prediction", name=op.f("pk_predictions")),
    )
    with op.batch_alter_table("predictions", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_predictions_package"), ["package"], unique=False)
        batch_op.create_index(batch_op.f("ix_predictions_volume"), ["volume"], unique=False)


def downgrade() -> None:

    with op.batch_alter_table("predictions", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_predictions_volume"))
        batch_op.drop_index(batch_op.f("ix_predictions_package"))

    op.drop_table("predictions")
    with op.batch_alter_table("labels", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_labels_volume"))
        batch_op.drop_index(batch_op.f("ix_labels_study"))
        batch_op.drop_index(batch_op.f("ix_labels_source_digest"))
        batch_op.drop_index(batch_op.f("ix_labels_patient"))
        batch_op.drop_index(batch_op.f("ix_labels_name"))

    op.drop_table("labels")
    with op.batch_alter_table("volumes", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_volumes_study"))
        batch_op.drop_index(batch_op.f("ix_volumes_series_uid"))
        batch_op.drop_index(batch_op.f("ix_volumes_series"))
        batch_op.drop_index(batch_op.f("ix_volumes_patient"))
        batch_op.drop_index(batch_op.f("ix_volumes_modality"))
        batch_op.drop_index(batch_op.f("ix_volumes_frame_of_reference"))

    op.drop_table("volumes")
    with op.batch_alter_table("evaluations", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_evaluations_package"))
        batch_op.drop_index(batch_op.f("ix_evaluations_dataset"))

    op.drop_table("evaluations")
    with op.batch_alter_table("series", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_series_study"))
        batch_op.drop_index(batch_op.f("ix_series_series_uid"))
        batch_op.drop_index(batch_op.f("ix_series_patient"))

    op.drop_table("series")
    with op.batch_alter_table("plans", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_plans_dataset"))

    op.drop_table("plans")
    with op.batch_alter_table("packages", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_packages_name"))
        batch_op.drop_index(batch_op.f("ix_packages_dataset"))

    op.drop_table("packages")
    with op.batch_alter_table("vault", schema=None) as batch_op:
        batch_op.drop_index("ix_vault_kind_created_at")

    op.drop_table("vault")
    with op.batch_alter_table("studies", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_studies_patient"))

    op.drop_table("studies")
    op.drop_table("splits")
    with op.batch_alter_table("quarantine", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_quarantine_subject"))
        batch_op.drop_index(batch_op.f("ix_quarantine_reason"))

    op.drop_table("quarantine")
    with op.batch_alter_table("decisions", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_decisions_package"))
        batch_op.drop_index(batch_op.f("ix_decisions_name"))

    op.drop_table("decisions")
    with op.batch_alter_table("datasets", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_datasets_name"))

    op.drop_table("datasets")

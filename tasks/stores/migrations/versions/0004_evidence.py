"""What is watched after promotion: facts of each prediction, corrections, alerts; studies above 2 GiB."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "alerts",
        sa.Column("alert", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("package", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("measure", sa.String(), nullable=False),
        sa.Column("how", sa.String(), nullable=False),
        sa.Column("value", sa.Float(), nullable=False),
        sa.Column("threshold", sa.Float(), nullable=False),
        sa.Column("cases", sa.Integer(), nullable=False),
        sa.Column("told", sa.String(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("resolved_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["package"], ["packages.package"], name=op.f("fk_alerts_package_packages")),
        sa.PrimaryKeyConstraint("alert", name=op.f("pk_alerts")),
    )
    with op.batch_alter_table("alerts", schema=None) as batch_op:
        for column in ("created_at", "name", "package", "resolved_at"):
            batch_op.create_index(batch_op.f(f"ix_alerts_{column}"), [column], unique=False)

    op.create_table(
        "corrections",
        sa.Column("correction", sa.String(), nullable=False),
        sa.Column("prediction", sa.String(), nullable=False),
        sa.Column("label", sa.String(), nullable=False),
        sa.Column("package", sa.String(), nullable=False),
        sa.Column("how", sa.String(), nullable=False),
        sa.Column("scores", sa.JSON(), nullable=False),
        sa.Column("value", sa.Float(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["label"], ["labels.label"], name=op.f("fk_corrections_label_labels")),
        sa.ForeignKeyConstraint(["package"], ["packages.package"], name=op.f("fk_corrections_package_packages")),
        sa.ForeignKeyConstraint(
            ["prediction"], ["predictions.prediction"], name=op.f("fk_corrections_prediction_predictions")
        ),
        sa.PrimaryKeyConstraint("correction", name=op.f("pk_corrections")),
    )
    with op.batch_alter_table("corrections", schema=None) as batch_op:
        for column in ("created_at", "label", "package", "prediction"):
            batch_op.create_index(batch_op.f(f"ix_corrections_{column}"), [column], unique=False)

    op.add_column("predictions", sa.Column("facts", sa.JSON(), nullable=True))
    op.add_column("predictions", sa.Column("uncertainty", sa.Float(), nullable=True))
    with op.batch_alter_table("predictions", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_predictions_created_at"), ["created_at"], unique=False)
    with op.batch_alter_table("instances", schema=None) as batch_op:
        batch_op.alter_column("bytes", existing_type=sa.Integer(), type_=sa.BigInteger(), existing_nullable=False)


def downgrade() -> None:
    with op.batch_alter_table("instances", schema=None) as batch_op:
        batch_op.alter_column("bytes", existing_type=sa.BigInteger(), type_=sa.Integer(), existing_nullable=False)
    with op.batch_alter_table("predictions", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_predictions_created_at"))
    op.drop_column("predictions", "uncertainty")
    op.drop_column("predictions", "facts")
    for table in ("corrections", "alerts"):
        op.drop_table(table)

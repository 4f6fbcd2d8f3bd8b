"""Clinical tables, and what headers say of patients."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "clinical",
        sa.Column("clinical", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("patient", sa.String(), nullable=True),
        sa.Column("study", sa.String(), nullable=True),
        sa.Column("content", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("clinical", name=op.f("pk_clinical")),
    )
    with op.batch_alter_table("clinical", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_clinical_name"), ["name"], unique=False)
        batch_op.create_index(batch_op.f("ix_clinical_patient"), ["patient"], unique=False)
        batch_op.create_index(batch_op.f("ix_clinical_study"), ["study"], unique=False)

    op.add_column("volumes", sa.Column("characteristics", sa.JSON(), nullable=True))


def downgrade() -> None:
    op.drop_column("volumes", "characteristics")
    with op.batch_alter_table("clinical", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_clinical_study"))
        batch_op.drop_index(batch_op.f("ix_clinical_patient"))
        batch_op.drop_index(batch_op.f("ix_clinical_name"))

    op.drop_table("clinical")

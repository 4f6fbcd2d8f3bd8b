"""Which version of a study is the latest: the account counts by it, whatever there is."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_LATEST, _LATER, _BY_STUDY = (f"ix_study_versions_{name}" for name in ("latest", "later", "study"))


def upgrade() -> None:
    op.add_column("study_versions", sa.Column("latest", sa.Boolean(), nullable=False, server_default=sa.true()))
    op.execute(
        "UPDATE study_versions SET latest = false WHERE EXISTS (SELECT 1 FROM study_versions AS later "
        "WHERE later.study = study_versions.study AND later.number > study_versions.number)"
    )
    op.drop_index(op.f(_LATEST), "study_versions")
    op.create_index(op.f(_BY_STUDY), "study_versions", ["study"])
    op.create_index(
        op.f(_LATEST),
        "study_versions",
        ["outcome"],
        postgresql_where=sa.text("latest"),
        sqlite_where=sa.text("latest = 1"),
    )
    few = sa.text("number > 1")
    op.create_index(op.f(_LATER), "study_versions", ["study"], postgresql_where=few, sqlite_where=few)


def downgrade() -> None:
    for name in (_LATER, _LATEST, _BY_STUDY):
        op.drop_index(op.f(name), "study_versions")
    op.drop_column("study_versions", "latest")
    op.create_index(op.f(_LATEST), "study_versions", ["study", "number", "outcome", "version"])

"""The account of studies: how many instances came of each, and its latest version's outcome by an index alone."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_BY_STUDY, _LATEST = "ix_study_versions_study", "ix_study_versions_latest"


def upgrade() -> None:
    op.add_column("arrivals", sa.Column("instances", sa.Integer(), nullable=False, server_default="0"))
    op.execute(
        "UPDATE arrivals SET instances = (SELECT count(*) FROM instances WHERE instances.study = arrivals.study)"
    )
    op.create_index(op.f(_LATEST), "study_versions", ["study", "number", "outcome", "version"])
    op.drop_index(op.f(_BY_STUDY), "study_versions")  # the longer one begins with it


def downgrade() -> None:
    op.create_index(op.f(_BY_STUDY), "study_versions", ["study"])
    op.drop_index(op.f(_LATEST), "study_versions")
    op.drop_column("arrivals", "instances")

"""Indexes for what a night asks of a catalog with a million series."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_PLAIN = (
    ("volumes", ["modality", "description"]),
    ("labels", ["created_at"]),
    ("labels", ["series_uid"]),
    ("labels", ["source", "name"]),
    ("predictions", ["package", "created_at"]),
    ("study_versions", ["outcome", "completed_at"]),
    ("commitments", ["asked_at"]),
)
_SHORTER = (("predictions", "package"), ("volumes", "modality"))  # the longer ones begin with them
_PARTIAL = (
    ("ix_quarantine_open", "quarantine", ["created_at"], "resolved_at IS NULL"),
    ("ix_outbox_waiting", "outbox", ["kind", "due_at"], "done_at IS NULL"),
)


def upgrade() -> None:
    for table, columns in _PLAIN:
        op.create_index(op.f(f"ix_{table}_{'_'.join(columns)}"), table, columns)
    for name, table, columns, where in _PARTIAL:
        op.create_index(op.f(name), table, columns, postgresql_where=sa.text(where), sqlite_where=sa.text(where))
    for table, column in _SHORTER:
        op.drop_index(op.f(f"ix_{table}_{column}"), table)


def downgrade() -> None:
    for table, column in _SHORTER:
        op.create_index(op.f(f"ix_{table}_{column}"), table, [column])
    for name, table, *_ in _PARTIAL:
        op.drop_index(op.f(name), table)
    for table, columns in _PLAIN:
        op.drop_index(op.f(f"ix_{table}_{'_'.join(columns)}"), table)

"""An index of queued ingestions by when the queue last heard of them, made while others write.

Revision ID: 0006
Revises: 0005
"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.get_context().autocommit_block():
        # an attempt that was interrupted leaves an index that is not valid, and IF NOT EXISTS would keep it
        op.drop_index("ix_ingestions_unheard", "ingestions", postgresql_concurrently=True, if_exists=True)
        op.create_index(
            "ix_ingestions_unheard",
            "ingestions",
            [sa.text("coalesce(hinted_at, '-infinity'::timestamptz)"), "next_run_at"],
            postgresql_where=sa.text("state = 'queued'"),
            postgresql_concurrently=True,
        )


def downgrade() -> None:
    op.drop_index("ix_ingestions_unheard", "ingestions")

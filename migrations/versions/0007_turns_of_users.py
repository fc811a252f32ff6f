"""An index of each user's queued ingestions in the order of their turn, made while others write.

Revision ID: 0007
Revises: 0006
"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.get_context().autocommit_block():
        # an attempt that was interrupted leaves an index that is not valid, and IF NOT EXISTS would keep it
        op.drop_index("ix_ingestions_turns", "ingestions", postgresql_concurrently=True, if_exists=True)
        op.create_index(
            "ix_ingestions_turns",
            "ingestions",
            ["user_id", "next_run_at", "id"],
            postgresql_where=sa.text("state = 'queued'"),
            postgresql_concurrently=True,
        )


def downgrade() -> None:
    op.drop_index("ix_ingestions_turns", "ingestions")

"""An index of settled ingestions whose jobs are to be withdrawn, made while others write.

Revision ID: 0005
Revises: 0004
"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.get_context().autocommit_block():
        # an attempt that was interrupted leaves an index that is not valid, and IF NOT EXISTS would keep it
        op.drop_index("ix_ingestions_overtaken", "ingestions", postgresql_concurrently=True, if_exists=True)
        op.create_index(
            "ix_ingestions_overtaken",
            "ingestions",
            ["id"],
            postgresql_where=sa.text("state IN ('completed', 'failed', 'cancelled') AND hinted_at IS NOT NULL"),
            postgresql_concurrently=True,
        )


def downgrade() -> None:
    op.drop_index("ix_ingestions_overtaken", "ingestions")

"""An index of the files that expire, made while others write.

Revision ID: 0004
Revises: 0003
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.get_context().autocommit_block():
        # an attempt that was interrupted leaves an index that is not valid, and IF NOT EXISTS would keep it
        op.drop_index("ix_files_expiring", "files", postgresql_concurrently=True, if_exists=True)
        op.create_index(
            "ix_files_expiring",
            "files",
            ["expires_at"],
            postgresql_where=sa.text("expires_at IS NOT NULL"),
            postgresql_concurrently=True,
        )


def downgrade() -> None:
    op.drop_index("ix_files_expiring", "files")

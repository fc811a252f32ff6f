"""The epoch of Redis' memory, so that hints which it has lost are rung again at once.

Revision ID: 0002
Revises: 0001
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "queue_epochs",
        sa.Column("is_only_row", sa.Boolean(), server_default=sa.text("true"), nullable=False),
        sa.Column("epoch", sa.Uuid(), nullable=False),
        sa.Column("since", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("is_only_row", name=op.f("ck_queue_epochs_one_row")),
        sa.PrimaryKeyConstraint("is_only_row", name=op.f("pk_queue_epochs")),
    )


def downgrade() -> None:
    op.drop_table("queue_epochs")

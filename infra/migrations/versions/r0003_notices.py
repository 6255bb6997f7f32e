"""The outbox of notices."""

import sqlalchemy as sa
from alembic import op

revision = "r0003"
down_revision: str | None = "r0002"
IDENTITY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """The tables."""
    op.create_table(
        "reading_notices",
        sa.Column("id", IDENTITY, autoincrement=True, nullable=False),
        sa.Column("study", IDENTITY, nullable=False),
        sa.Column("opening", sa.Integer(), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("recipient_group", sa.String(length=64), nullable=False),
        sa.Column("template", sa.String(length=64), nullable=False),
        sa.Column("facts", sa.Text(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("level", sa.Integer(), nullable=False),
        sa.Column("tries", sa.Integer(), nullable=False),
        sa.Column("code", sa.String(length=128), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("next_at", sa.BigInteger(), nullable=False),
        sa.Column("sent_at", sa.BigInteger(), nullable=True),
        sa.Column("escalate_at", sa.BigInteger(), nullable=True),
        sa.Column("acknowledged_at", sa.BigInteger(), nullable=True),
        sa.Column("acknowledged_by", sa.String(length=128), nullable=False),
        sa.ForeignKeyConstraint(["study"], ["reading_studies.id"], name="fk_reading_notices_study"),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("study", "opening", "kind", "recipient_group", "template", name="uq_reading_notices_once"),
    )
    op.create_index("ix_reading_notices_due", "reading_notices", ["state", "next_at"], unique=False)

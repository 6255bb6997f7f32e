"""Studies, where each archive was polled to, and what this node wrote itself."""

import sqlalchemy as sa
from alembic import op

revision = "r0001"
down_revision: str | None = None
IDENTITY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """The tables."""
    op.create_table(
        "reading_facts",
        sa.Column("name", sa.String(length=32), nullable=False),
        sa.Column("value", sa.String(length=128), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "reading_studies",
        sa.Column("id", IDENTITY, autoincrement=True, nullable=False),
        sa.Column("pacs", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("uid_sealed", sa.LargeBinary(), nullable=False),
        sa.Column("details_sealed", sa.LargeBinary(), nullable=False),
        sa.Column("fingerprint", sa.String(length=64), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("stage", sa.String(length=16), nullable=False),
        sa.Column("priority", sa.String(length=8), nullable=False),
        sa.Column("opening", sa.Integer(), nullable=False),
        sa.Column("changed", sa.Boolean(), nullable=False),
        sa.Column("cancel_asked", sa.Boolean(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("tries", sa.Integer(), nullable=False),
        sa.Column("codes", sa.String(length=2000), nullable=False),
        sa.Column("turn", sa.BigInteger(), nullable=False),
        sa.Column("next_at", sa.BigInteger(), nullable=False),
        sa.Column("queued_at", sa.BigInteger(), nullable=False),
        sa.Column("registered_at", sa.BigInteger(), nullable=False),
        sa.Column("content_at", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.Column("lease_owner", sa.String(length=128), nullable=False),
        sa.Column("lease_token", sa.String(length=32), nullable=False),
        sa.Column("lease_until", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("pacs", "name", name="uq_reading_studies_pacs_name"),
    )
    op.create_index("ix_reading_studies_lease", "reading_studies", ["state", "lease_until"], unique=False)
    op.create_index("ix_reading_studies_turn", "reading_studies", ["state", "turn", "id"], unique=False)
    op.create_table(
        "reading_watermarks",
        sa.Column("pacs", sa.String(length=64), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("polled_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("pacs"),
    )
    op.create_table(
        "reading_own_series",
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("study", IDENTITY, nullable=False),
        sa.ForeignKeyConstraint(["study"], ["reading_studies.id"], name="fk_reading_own_series_study"),
        sa.PrimaryKeyConstraint("name"),
    )

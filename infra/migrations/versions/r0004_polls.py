"""Polls: what a study's counts were when it was last listed, how each archive's polls went, what a sweep leaves alone."""

import sqlalchemy as sa
from alembic import op

revision = "r0004"
down_revision: str | None = "r0003"


def upgrade() -> None:
    """A study that is there already has no counts yet: the next poll lists it, and writes them down."""
    op.add_column("reading_studies", sa.Column("counts", sa.String(length=64), nullable=False, server_default=""))
    op.add_column("reading_studies", sa.Column("listed_at", sa.BigInteger(), nullable=False, server_default="0"))
    op.create_table(
        "reading_polls",
        sa.Column("pacs", sa.String(length=64), nullable=False),
        sa.Column("since", sa.BigInteger(), nullable=False),
        sa.Column("odd", sa.Integer(), nullable=False),
        sa.Column("unproven", sa.Integer(), nullable=False),
        sa.Column("swept_at", sa.BigInteger(), nullable=True),
        sa.Column("swept_from", sa.BigInteger(), nullable=True),
        sa.Column("sweep_next", sa.BigInteger(), nullable=False),
        sa.Column("sweep_odd", sa.Integer(), nullable=False),
        sa.Column("sweep_unproven", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("pacs"),
    )
    op.create_table(
        "reading_baseline",
        sa.Column("pacs", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("counts", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("pacs", "name"),
    )

"""Peers that are down: since when a study meets it, and which endpoints are left alone."""

import sqlalchemy as sa
from alembic import op

revision = "r0006"
down_revision: str | None = "r0005"


def upgrade() -> None:
    """The columns and the table."""
    op.add_column("reading_studies", sa.Column("outages", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("reading_studies", sa.Column("outage_since", sa.BigInteger(), nullable=True))
    op.create_table(
        "reading_pauses",
        sa.Column("pacs", sa.String(length=64), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("until", sa.BigInteger(), nullable=False),
        sa.Column("probed", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("pacs"),
    )

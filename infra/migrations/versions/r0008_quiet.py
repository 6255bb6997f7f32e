"""How often a study was given back because it was still being sent."""

import sqlalchemy as sa
from alembic import op

revision = "r0008"
down_revision: str | None = "r0007"


def upgrade() -> None:
    """The column."""
    op.add_column("reading_studies", sa.Column("unsettled", sa.Integer(), nullable=False, server_default="0"))

"""Our own reports, by opening."""

import sqlalchemy as sa
from alembic import op

revision = "r0007"
down_revision: str | None = "r0006"
IDENTITY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """The table."""
    op.create_table(
        "reading_own_reports",
        sa.Column("study", IDENTITY, nullable=False),
        sa.Column("opening", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("named_sealed", sa.LargeBinary(), nullable=False),
        sa.Column("stored", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(["study"], ["reading_studies.id"], name="fk_reading_own_reports_study"),
        sa.PrimaryKeyConstraint("study", "opening", "name"),
    )

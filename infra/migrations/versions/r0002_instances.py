"""The instances of a study, and dead letters."""

import sqlalchemy as sa
from alembic import op

revision = "r0002"
down_revision: str | None = "r0001"
IDENTITY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """The tables."""
    op.create_table(
        "reading_instances",
        sa.Column("study", IDENTITY, nullable=False),
        sa.Column("opening", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("uid_sealed", sa.LargeBinary(), nullable=False),
        sa.Column("series_sealed", sa.LargeBinary(), nullable=False),
        sa.Column("sop_class", sa.String(length=64), nullable=False),
        sa.Column("before", sa.Boolean(), nullable=False),
        sa.Column("after", sa.Boolean(), nullable=False),
        sa.Column("sha256", sa.String(length=71), nullable=False),
        sa.Column("conflict", sa.Boolean(), nullable=False),
        sa.Column("analysed", sa.Boolean(), nullable=False),
        sa.Column("reason", sa.String(length=128), nullable=False),
        sa.Column("referenced", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(["study"], ["reading_studies.id"], name="fk_reading_instances_study"),
        sa.PrimaryKeyConstraint("study", "opening", "name"),
    )
    op.create_table(
        "reading_letters",
        sa.Column("id", IDENTITY, autoincrement=True, nullable=False),
        sa.Column("study", IDENTITY, nullable=False),
        sa.Column("opening", sa.Integer(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("stage", sa.String(length=16), nullable=False),
        sa.Column("codes", sa.String(length=2000), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("resolved_at", sa.BigInteger(), nullable=True),
        sa.Column("resolution", sa.String(length=16), nullable=False),
        sa.Column("why_sealed", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["study"], ["reading_studies.id"], name="fk_reading_letters_study"),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index(op.f("ix_reading_letters_study"), "reading_letters", ["study"], unique=False)

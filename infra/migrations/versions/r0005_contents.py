"""The content in which an instance was opened, and in which a report refers to it."""

import sqlalchemy as sa
from alembic import op

revision = "r0005"
down_revision: str | None = "r0004"


def upgrade() -> None:
    """The columns; empty for what was read before, which is said anew where a study goes on."""
    for name in ("opened_sha256", "referenced_sha256"):
        op.add_column("reading_instances", sa.Column(name, sa.String(length=71), nullable=False, server_default=""))

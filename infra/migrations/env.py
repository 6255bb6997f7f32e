"""How alembic reaches the database: by the connection that opening the register gives it, inside that one transaction."""

from alembic import context

context.configure(
    connection=context.config.attributes["connection"],
    version_table="reading_schema",
    transactional_ddl=True,  # SQLite too: the transaction is begun by hand
)
with context.begin_transaction():
    context.run_migrations()
